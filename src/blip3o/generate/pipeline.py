"""The user's door to a model: `Blip3oPipeline`, with the habits of diffusers' pipelines."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.flow.solver import StepCallback
from blip3o.generate.checks import check_output_type, check_sampling, texts_of
from blip3o.generate.compiled import CompiledDraw
from blip3o.generate.draw import draw
from blip3o.generate.empty import empty_condition
from blip3o.generate.outputs import (
    DecodingSettings,
    ImageOutput,
    OutputType,
    decoding_settings,
    describe_parts,
    finish,
)
from blip3o.generate.requests import (
    Generators,
    ImageInput,
    as_images,
    drawing_prompt,
    model_noise,
    one_for_each,
    square_pixels,
    step_callback,
)
from blip3o.generate.text import left_pad
from blip3o.generate.text_pipeline import TextPipeline
from blip3o.models.generators.plan import Plan
from blip3o.models.prompts import Prompts
from blip3o.models.unified import SamplingConfig, UnifiedModel
from blip3o.text.tokenizer import Tokenizer


class Draw(Protocol):
    """The type of `draw` and of `CompiledDraw`."""

    def __call__(
        self,
        plan: Plan,
        noise: Tensor,
        guidance_scale: float | Tensor,
        sampling: SamplingConfig,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Returns normalized features drawn from a plan."""
        ...


class Blip3oPipeline(TextPipeline):
    """Text and images in, text and images out.

    Args:
        model: the model, in evaluation mode.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: UnifiedModel, tokenizer: Tokenizer) -> None:
        super().__init__(model, tokenizer)
        self._empty_features: Tensor | None = None
        self._draw: Draw = draw

    @property
    def image_decoder(self) -> Any:  # noqa: ANN401  (of many types)
        """Features to pixels; of a diffusion its `scheduler` may be replaced."""
        return self.model.image_decoder

    def __repr__(self) -> str:
        """Returns the model's parts with their sizes, and where and in which type it computes."""
        parts = describe_parts(self.model)
        return "\n".join([f"{type(self).__name__}(", *parts, f"  {self.device}, {self.dtype}", ")"])

    def compile(self) -> None:
        """Makes drawing faster after a slow first image of each batch size and number of steps.

        The generator's layers are compiled. On CUDA the whole sampler is also replayed as one
        graph, unless a callback watches the steps.
        """
        self._draw = CompiledDraw(self.model.generator)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_decoder_steps: int | None = None,
        decoder_guidance_scale: float | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: Callable[..., Any] | None = None,
    ) -> ImageOutput:
        """Returns images of prompts.

        Args:
            prompt: one caption or several; they may differ in length.
            num_images_per_prompt: images of each prompt.
            generator: one generator (drawn from image by image) or one for each image; the
                same generator gives the same image, alone or in a batch.
            num_inference_steps: steps of the DiT; the model's own number if None.
            guidance_scale: 1 or more; the model's own number if None.
            num_decoder_steps: steps of the image decoder; the model's own number if None.
            decoder_guidance_scale: 1 or more, for a decoder that is guided; likewise.
            output_type: see `ImageOutput`.
            callback_on_step_end: called as f(pipe, steps_done, num_steps, {"features": tensor})
                after each step; may return a dict with changed "features".

        Raises:
            UsageError: for an empty or over-long prompt or a number out of range.
        """
        prompts = texts_of(prompt, "prompt")
        make = self.chat_template.generate_messages
        rows = [
            drawing_prompt(self.model, self.chat_template, make(text), text) for text in prompts
        ]
        return self._generate(
            rows,
            None,
            num_images_per_prompt,
            generator,
            num_inference_steps,
            guidance_scale,
            decoding_settings(self.model.config, num_decoder_steps, decoder_guidance_scale),
            output_type,
            callback_on_step_end,
        )

    def edit(
        self,
        image: ImageInput | Sequence[ImageInput],
        instruction: str | Sequence[str],
        *,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_decoder_steps: int | None = None,
        decoder_guidance_scale: float | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: Callable[..., Any] | None = None,
    ) -> ImageOutput:
        """Returns images changed as told; arguments as for a call.

        Args:
            image: one image or one for each instruction.
            instruction: what to change, one text or several.
            num_images_per_prompt: images of each instruction.
            generator: as for a call.
            num_inference_steps: as for a call.
            guidance_scale: as for a call.
            num_decoder_steps: as for a call.
            decoder_guidance_scale: as for a call.
            output_type: as for a call.
            callback_on_step_end: as for a call.

        Raises:
            UsageError: for an image that cannot be read, another number of images than of
                instructions, or anything a call refuses.
        """
        texts = texts_of(instruction, "instruction")
        images = one_for_each(image, texts)
        chat = self.chat_template
        rows = [drawing_prompt(self.model, chat, chat.edit_messages(text), text) for text in texts]
        return self._generate(
            rows,
            square_pixels(self.model, images) if images else None,
            num_images_per_prompt,
            generator,
            num_inference_steps,
            guidance_scale,
            decoding_settings(self.model.config, num_decoder_steps, decoder_guidance_scale),
            output_type,
            callback_on_step_end,
        )

    @torch.no_grad()
    def reconstruct(
        self,
        image: ImageInput | Sequence[ImageInput],
        *,
        generator: Generators = None,
        num_decoder_steps: int | None = None,
        decoder_guidance_scale: float | None = None,
        output_type: OutputType = "pil",
    ) -> ImageOutput:
        """Returns images through the image encoder and the image decoder: what features keep.

        Args:
            image: one image or several.
            generator: as for a call.
            num_decoder_steps: as for a call.
            decoder_guidance_scale: as for a call.
            output_type: as for a call.

        Raises:
            UsageError: for an image that cannot be read, or none.
        """
        check_output_type(output_type)
        decoding = decoding_settings(self.model.config, num_decoder_steps, decoder_guidance_scale)
        images = as_images(image)
        self._prepare_decoder(output_type)
        features = self.model.normalizer(self.encode(images))
        _, decoder_noise = model_noise(self.model, len(images), generator)
        empty = self._empty_features
        return finish(self.model, features, decoder_noise, decoding, output_type, empty)

    @torch.no_grad()
    def encode(self, images: Sequence[ImageInput]) -> Tensor:
        """Returns the raw image features [M, N, C] of images of any size and mode.

        Args:
            images: files, bytes or PIL images.

        Raises:
            UsageError: for an image that cannot be read, or none.
        """
        opened = as_images(images)
        if not opened:
            raise UsageError("no image was given")
        return self.model.encode_images(square_pixels(self.model, opened))

    @torch.no_grad()
    def plan(self, rows: Sequence[Sequence[int]], pixels: Tensor | None = None) -> Plan:
        """Returns the plan of tokenized prompts; see `blip3o.generate.requests.drawing_prompt`.

        Args:
            rows: token ids of P prompts; they may differ in length.
            pixels: images of the prompts, in order, [M, 3, P, P] in [-1, 1]. If there are as many
                images as prompts or more, the first of each prompt is the one to edit.
        """
        ids, mask = left_pad(rows, self.tokenizer.pad_id)
        images = self.model.prompt_images(pixels)
        reference = self.model.reference(pixels, images)
        if reference is not None:  # of several images of a prompt, the first is edited
            reference = reference[:: len(reference) // len(rows)]
        prompts = Prompts(
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            images=images,
            reference=reference,
        )
        return self.model.plan(prompts)

    @torch.no_grad()
    def draw(
        self,
        plan: Plan,
        noise: Tensor,
        guidance_scale: float | Tensor,
        *,
        num_inference_steps: int,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Returns normalized features drawn from a plan; see `blip3o.generate.draw.draw`.

        Args:
            plan: from `plan`.
            noise: start of the path, [B, N, K].
            guidance_scale: a number, or one for each image, [B].
            num_inference_steps: steps of the model's solver.
            callback: called after each step.
        """
        sampling = dataclasses.replace(
            self.model.config.sampling, num_inference_steps=num_inference_steps
        )
        return self._draw(plan, noise, guidance_scale, sampling, callback)

    @torch.no_grad()
    def _generate(
        self,
        rows: list[list[int]],
        pixels: Tensor | None,
        num_images: int,
        generator: Generators,
        num_inference_steps: int | None,
        guidance_scale: float | None,
        decoding: DecodingSettings,
        output_type: OutputType,
        callback: Callable[..., Any] | None,
    ) -> ImageOutput:
        defaults = self.model.config.sampling
        steps = defaults.num_inference_steps if num_inference_steps is None else num_inference_steps
        scale = self.model.config.guidance(guidance_scale)
        check_sampling(steps, scale, num_images, output_type)
        if not rows:
            raise UsageError("no prompt was given")
        self._prepare_decoder(output_type)
        feature_noise, decoder_noise = model_noise(self.model, len(rows) * num_images, generator)
        features = self.draw(
            self.plan(rows, pixels),
            feature_noise,
            scale,
            num_inference_steps=steps,
            callback=step_callback(self, callback, steps),
        )
        empty = self._empty_features
        return finish(self.model, features, decoder_noise, decoding, output_type, empty)

    def _prepare_decoder(self, output_type: OutputType) -> None:
        """Makes what images need beside features, before the work; refuses if there is no way."""
        if output_type != "features" and self._empty_features is None:
            self._empty_features = empty_condition(self.model, self.tokenizer)
