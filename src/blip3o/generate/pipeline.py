"""`Blip3oPipeline`, the interface of a model for users; it follows diffusers' pipelines."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, Unpack

import torch
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.flow.solver import StepCallback
from blip3o.generate.checks import (
    check_output_type,
    check_sampling,
    texts_of,
)
from blip3o.generate.compiled import CompiledDraw
from blip3o.generate.draw import draw
from blip3o.generate.interleaved import DrawImages
from blip3o.generate.outputs import (
    DecodingSettings,
    ImageOutput,
    OutputType,
    decoding_settings,
    empty_condition,
    finish,
)
from blip3o.generate.reply_pipeline import DrawingSettings, ReplyPipeline
from blip3o.generate.requests import (
    Generators,
    ImageInput,
    as_images,
    drawing_prompt,
    model_noise,
    some_for_each,
    square_pixels,
    step_callback,
)
from blip3o.generate.text import left_pad
from blip3o.models.generators.plan import Plan
from blip3o.models.prompts import Prompts
from blip3o.models.unified import SamplingConfig, UnifiedModel
from blip3o.text.tokenizer import Tokenizer

Draw: TypeAlias = Callable[
    [Plan, Tensor, float | Tensor, SamplingConfig, StepCallback | None], Tensor
]
"""The type of `draw` and of `CompiledDraw`."""


class Blip3oPipeline(ReplyPipeline):
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
    def image_decoder(self) -> Any:  # noqa: ANN401  (users set attributes that only some have)
        """The image decoder; the `scheduler` of a diffusion decoder may be replaced."""
        return self.model.image_decoder

    def __repr__(self) -> str:
        """Returns the parts of the model with their sizes, the device and the dtype."""
        lines = []
        for name, part in self.model.named_children():
            numbers = sum(one.numel() for one in {*part.parameters(), *part.buffers()})
            lines.append(f"  {name}: {type(part).__name__}, {numbers / 1e6:.2f} M parameters")
        return "\n".join([f"{type(self).__name__}(", *lines, f"  {self.device}, {self.dtype}", ")"])

    def compile(self) -> None:
        """Makes drawing faster; the first batch of each size and number of steps becomes slow.

        The generator's layers are compiled. On CUDA, all steps also run as one graph, unless a
        callback is given.
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
            generator: one for all images, in order, or one for each image. An image with its own
                generator is the same alone and in a batch.
            num_inference_steps: steps of the generator; None for the model's own number.
            guidance_scale: 1 or more; None for the model's own number.
            num_decoder_steps: steps of the image decoder; None for the model's own number.
            decoder_guidance_scale: 1 or more, for a decoder with guidance; None for its own number.
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
            [],
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
        image: ImageInput | Sequence[ImageInput | Sequence[ImageInput]],
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
        """Returns images that are changed by one or several instructions.

        Give one image for all instructions, or a list with one image for each. An entry of the list
        may itself be a list: several images for one instruction, in the order in which it speaks of
        them. The keyword arguments are those of a call.

        Raises:
            UsageError: if an image cannot be read, images and instructions differ in number, or as
                a call does.
        """
        texts = texts_of(instruction, "instruction")
        images = some_for_each(image, texts)
        chat = self.chat_template
        rows = [
            drawing_prompt(self.model, chat, chat.edit_messages(text, len(some)), text)
            for text, some in zip(texts, images, strict=True)
        ]
        return self._generate(
            rows,
            images,
            num_images_per_prompt,
            generator,
            num_inference_steps,
            guidance_scale,
            decoding_settings(self.model.config, num_decoder_steps, decoder_guidance_scale),
            output_type,
            callback_on_step_end,
        )

    def _drawing(self, **settings: Unpack[DrawingSettings]) -> DrawImages:
        """Returns a function that draws and decodes the images of a plan."""
        config = self.model.config
        steps = settings.get("num_inference_steps")
        steps = config.sampling.num_inference_steps if steps is None else steps
        scale = config.guidance(settings.get("guidance_scale"))
        check_sampling(steps, scale, 1)
        decoding = decoding_settings(
            config, settings.get("num_decoder_steps"), settings.get("decoder_guidance_scale")
        )
        self._prepare_decoder("pil")

        def draw_images(plan: Plan, seeds: list[torch.Generator]) -> tuple[Tensor, list[Any]]:
            noise, decoder_noise = model_noise(self.model, len(plan), seeds)
            features = self.draw(plan, noise, scale, num_inference_steps=steps)
            output = finish(
                self.model, features, decoder_noise, decoding, "pil", self._empty_features
            )
            return features, output.images

        return draw_images

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
        """Returns images after the image encoder and the image decoder.

        They show how much of one image or of several images the features preserve. The keyword
        arguments are those of a call.

        Raises:
            UsageError: if there is no image or an image cannot be read.
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
        """Returns the raw features [M, N, C] of images of any size and mode.

        Args:
            images: files, bytes or PIL images.

        Raises:
            UsageError: if there is no image or an image cannot be read.
        """
        opened = as_images(images)
        if not opened:
            raise UsageError("no image was given")
        return self.model.encode_images(square_pixels(self.model, opened))

    @torch.no_grad()
    def plan(
        self,
        rows: Sequence[Sequence[int]],
        pixels: Tensor | None = None,
        counts: Sequence[int] | None = None,
    ) -> Plan:
        """Returns the plan of tokenized prompts; see `blip3o.generate.requests.drawing_prompt`.

        Args:
            rows: token ids of the prompts; they may differ in length.
            pixels: images of the prompts, in order, [M, 3, P, P] in [-1, 1]. The first image of a
                prompt is the one to edit.
            counts: number of images of each prompt; None if all have the same number.
        """
        ids, mask = left_pad(rows, self.tokenizer.pad_id)
        images = self.model.prompt_images(pixels)
        reference = self.model.reference(pixels, images)
        if reference is not None:
            counts = counts or [len(reference) // len(rows)] * len(rows)
            reference = reference[[0, *itertools.accumulate(counts[:-1])]]
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
        """Returns normalized features [B, N, K]; arguments as for `blip3o.generate.draw.draw`.

        `num_inference_steps` replaces the number in the model's settings of sampling.
        """
        sampling = dataclasses.replace(
            self.model.config.sampling, num_inference_steps=num_inference_steps
        )
        return self._draw(plan, noise, guidance_scale, sampling, callback)

    @torch.no_grad()
    def _generate(
        self,
        rows: list[list[int]],
        images: list[list[ImageInput]],
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
        every = [*itertools.chain(*images)]
        pixels = square_pixels(self.model, every) if every else None
        features = self.draw(
            self.plan(rows, pixels, [len(some) for some in images] or None),
            feature_noise,
            scale,
            num_inference_steps=steps,
            callback=step_callback(self, callback, steps),
        )
        empty = self._empty_features
        return finish(self.model, features, decoder_noise, decoding, output_type, empty)

    def _prepare_decoder(self, output_type: OutputType) -> None:
        """Computes the decoder's empty condition once, before any other work of a call.

        Raises:
            UsageError: if the model has no image decoder.
        """
        if output_type != "features" and self._empty_features is None:
            self._empty_features = empty_condition(self.model, self.tokenizer)
