"""The user's door to a model: `Blip3oPipeline`, with the habits of diffusers' pipelines."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip3o.core.device import PrecisionName, resolve_device, resolve_dtype
from blip3o.core.errors import UsageError
from blip3o.core.types import IMAGE_MARK, Message
from blip3o.generate.compiled import CompiledSampler
from blip3o.generate.empty import empty_condition
from blip3o.generate.images import sample_features
from blip3o.generate.inputs import (
    Generators,
    Picture,
    as_pictures,
    check_output_type,
    check_sampling,
    draw_noise,
    open_picture,
)
from blip3o.generate.outputs import ImageOutput, OutputType, finish
from blip3o.generate.text import Writer, check_length, left_pad
from blip3o.imaging.pixels import to_pixels
from blip3o.models.unified import UnifiedModel
from blip3o.text.chat import ChatTemplate
from blip3o.text.tokenizer import Tokenizer
from blip3o.weights.folder import load_model
from blip3o.weights.hub import to_local


class Blip3oPipeline:
    """Text and pictures in, text and pictures out.

    Args:
        model: the model, in evaluation mode.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: UnifiedModel, tokenizer: Tokenizer) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.chat_template = ChatTemplate(
            tokenizer, model.config.chat, model.config.num_prompt_image_tokens
        )
        self._writer = Writer(model, tokenizer, self.chat_template)
        self._empty_features: Tensor | None = None
        self._sample: Callable[..., Tensor] = sample_features

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "pocket",
        *,
        device: str = "auto",
        dtype: PrecisionName = "auto",
        revision: str | None = None,
    ) -> "Blip3oPipeline":
        """Returns a pipeline over a bundled model or a model folder; downloads hub ids only.

        Args:
            name: "pocket", a folder (ours or a released one) or a hub id such as "org/name".
            device: "auto" or a torch device.
            dtype: "auto" (what the device is fast at), "fp32", "bf16" or "fp16".
            revision: branch, tag or commit, for a hub id.

        Raises:
            UsageError: if there is no such model or it is damaged.
        """
        target = resolve_device(device)
        loaded = load_model(to_local(name, revision), target, resolve_dtype(dtype, target))
        return cls(loaded.model, loaded.tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.query_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the model's weights."""
        return self.model.query_tokens.weight.dtype

    def compile(self) -> None:
        """Makes pictures faster after a first slow one of each batch size and number of steps.

        The DiT's layers are compiled; on CUDA the whole sampler is also replayed as one graph,
        except where a callback wants to see the steps.
        """
        self._sample = CompiledSampler(self.model)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: Callable[..., Any] | None = None,
    ) -> ImageOutput:
        """Returns pictures of prompts.

        Args:
            prompt: one caption or several; they may differ in length.
            num_images_per_prompt: pictures of each prompt.
            generator: one generator (drawn from picture by picture) or one for each picture; the
                same generator gives the same picture, alone or in a batch.
            num_inference_steps: steps of the DiT; the model's own number if None.
            guidance_scale: 1 or more; the model's own number if None.
            output_type: see `ImageOutput`.
            callback_on_step_end: called as f(pipe, steps_done, num_steps, {"features": tensor})
                after each step; may return a dict with changed "features".

        Raises:
            UsageError: for an empty or over-long prompt or a number out of range.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        make = self.chat_template.generate_messages
        rows = [self._image_prompt(make, text) for text in prompts]
        return self._generate(
            rows,
            None,
            num_images_per_prompt,
            generator,
            num_inference_steps,
            guidance_scale,
            output_type,
            callback_on_step_end,
        )

    def edit(
        self,
        image: Picture | Sequence[Picture],
        instruction: str | Sequence[str],
        *,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: Callable[..., Any] | None = None,
    ) -> ImageOutput:
        """Returns pictures changed as told; arguments as for a call.

        Args:
            image: one picture or one for each instruction.
            instruction: what to change, one text or several.
            num_images_per_prompt: pictures of each instruction.
            generator: as for a call.
            num_inference_steps: as for a call.
            guidance_scale: as for a call.
            output_type: as for a call.
            callback_on_step_end: as for a call.

        Raises:
            UsageError: for a picture that cannot be read, another number of pictures than of
                instructions, or anything a call refuses.
        """
        texts = [instruction] if isinstance(instruction, str) else list(instruction)
        pictures = as_pictures(image)
        if not isinstance(image, list | tuple):
            pictures = pictures * len(texts)
        if len(pictures) != len(texts):
            raise UsageError(f"{len(pictures)} pictures for {len(texts)} instructions")
        make = self.chat_template.edit_messages
        rows = [self._image_prompt(make, text) for text in texts]
        return self._generate(
            rows,
            self._pixels(pictures) if pictures else None,
            num_images_per_prompt,
            generator,
            num_inference_steps,
            guidance_scale,
            output_type,
            callback_on_step_end,
        )

    @torch.no_grad()
    def reconstruct(
        self,
        image: Picture | Sequence[Picture],
        *,
        generator: Generators = None,
        output_type: OutputType = "pil",
    ) -> ImageOutput:
        """Returns pictures through the image encoder and the image decoder: what features keep.

        Args:
            image: one picture or several.
            generator: as for a call.
            output_type: as for a call.

        Raises:
            UsageError: for a picture that cannot be read, or none.
        """
        check_output_type(output_type)
        pictures = as_pictures(image)
        self._prepare_decoder(output_type)
        features = self.model.normalizer(self.encode(pictures))
        _, decoder_noise = self._noise(len(pictures), generator)
        return self._finish(features, decoder_noise, output_type)

    def ask(
        self,
        image: Picture | Sequence[Picture] | None,
        question: str,
        *,
        max_new_tokens: int | None = None,
    ) -> str:
        """Returns the answer to a question about one or several pictures, or about none.

        Args:
            image: pictures the question is about, in order; None for text only.
            question: the question.
            max_new_tokens: longest answer; the model's own number if None.

        Raises:
            UsageError: for an empty question, a picture that cannot be read, or what `stream`
                refuses.
        """
        if not question.strip():
            raise UsageError("the question is empty")
        pictures = [] if image is None else as_pictures(image)
        text = f"{IMAGE_MARK}\n" * len(pictures) + question.strip()
        return "".join(
            self.stream([Message(role="user", text=text)], pictures, max_new_tokens=max_new_tokens)
        ).strip()

    def stream(
        self,
        messages: Sequence[Message],
        pictures: Sequence[Picture] = (),
        *,
        max_new_tokens: int | None = None,
    ) -> Iterator[str]:
        """Yields the next answer of a conversation piece by piece.

        Args:
            messages: the turns so far, ending with the user's.
            pictures: one for each image mark in the messages, in order.
            max_new_tokens: longest answer; the model's own number if None.

        Raises:
            UsageError: if marks and pictures differ in number, the conversation is too long, a
                picture cannot be read, or `max_new_tokens` is under 1.
        """
        row = self._writer.prompt(messages, len(pictures))
        yield from self._writer.text(self._write([row], pictures, max_new_tokens))

    def answer_batch(
        self, pictures: Sequence[Picture], questions: Sequence[str], max_new_tokens: int = 64
    ) -> list[str]:
        """Returns the answers to one question for each picture, in one batch.

        Args:
            pictures: one for each question.
            questions: the questions.
            max_new_tokens: longest answer.

        Raises:
            UsageError: for another number of pictures than of questions, or what `ask` refuses.
        """
        if len(pictures) != len(questions):
            raise UsageError(f"{len(pictures)} pictures for {len(questions)} questions")
        texts = [f"{IMAGE_MARK}\n{question}" for question in questions]
        rows = [self._writer.prompt([Message(role="user", text=text)], 1) for text in texts]
        if not rows:
            return []
        steps = self._write(rows, pictures, max_new_tokens)
        answers = torch.stack(list(steps), dim=1).tolist()
        # As in a stream: an answer that is cut in the middle of a letter ends before it.
        return [self.tokenizer.decode(answer).rstrip("\ufffd").strip() for answer in answers]

    @torch.no_grad()
    def encode(self, pictures: Sequence[Picture]) -> Tensor:
        """Returns the raw image features [M, N, C] of pictures of any size and mode.

        Args:
            pictures: files, bytes or PIL pictures.

        Raises:
            UsageError: for a picture that cannot be read, or none.
        """
        if not pictures:
            raise UsageError("no picture was given")
        return self.model.encode_images(self._pixels(pictures))

    @torch.no_grad()
    def _generate(
        self,
        rows: list[list[int]],
        pixels: Tensor | None,
        num_images: int,
        generator: Generators,
        num_inference_steps: int | None,
        guidance_scale: float | None,
        output_type: OutputType,
        callback: Callable[..., Any] | None,
    ) -> ImageOutput:
        defaults = self.model.config.sampling
        steps = defaults.num_inference_steps if num_inference_steps is None else num_inference_steps
        scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
        check_sampling(steps, scale, num_images, output_type)
        if not rows:
            raise UsageError("no prompt was given")
        self._prepare_decoder(output_type)
        feature_noise, decoder_noise = self._noise(len(rows) * num_images, generator)
        ids, mask = left_pad(rows, self.tokenizer.pad_id)
        images = self.model.prompt_images(pixels)
        condition = self.model.condition(ids.to(self.device), mask.to(self.device), images)
        reference = self.model.reference(pixels, images)

        def on_step(step: int, features: Tensor) -> Tensor | None:
            if callback is None:
                return None
            changed = (callback(self, step, steps, {"features": features}) or {}).get("features")
            if changed is not None and changed.shape != features.shape:
                shapes = f"{list(changed.shape)} instead of {list(features.shape)}"
                raise UsageError(f"the callback returned features of shape {shapes}")
            return changed

        features = self._sample(
            self.model,
            condition,
            feature_noise,
            num_inference_steps=steps,
            guidance_scale=scale,
            reference=reference,
            callback=None if callback is None else on_step,
        )
        return self._finish(features, decoder_noise, output_type)

    def _prepare_decoder(self, output_type: OutputType) -> None:
        """Makes what pictures need beside features, before the work; refuses if there is no way."""
        if output_type != "features" and self._empty_features is None:
            self._empty_features = empty_condition(self.model, self.tokenizer)

    def _finish(self, features: Tensor, noise: Tensor, output_type: OutputType) -> ImageOutput:
        return ImageOutput(finish(self.model, features, noise, output_type, self._empty_features))

    def _pixels(self, pictures: Sequence[Picture]) -> Tensor:
        """Returns pictures as pixels [M, 3, P, P] of the image encoder's size, in [-1, 1]."""
        side = self.model.config.image_encoder.image_px
        opened = [open_picture(picture) for picture in pictures]
        pixels = torch.stack([to_pixels(picture, side) for picture in opened])
        return pixels.to(self.device, self.dtype)

    def _noise(self, count: int, generator: Generators) -> tuple[Tensor, Tensor]:
        config = self.model.config
        shapes = (config.feature_shape, config.image_decoder.noise_shape)
        features, decoder = draw_noise(shapes, count, generator)
        place = {"device": self.device, "dtype": self.dtype}
        return features.to(**place), decoder.to(**place)

    def _image_prompt(self, make: Callable[[str], tuple[Message, ...]], text: str) -> list[int]:
        if not text.strip():
            raise UsageError("the prompt is empty; say what to draw")
        if IMAGE_MARK in text:
            raise UsageError(f"{IMAGE_MARK} in a prompt; pictures are given beside the text")
        row = self.chat_template.image_prompt(make(text))
        check_length(self.model, row, "the prompt")
        return row

    def _write(
        self, rows: list[list[int]], pictures: Sequence[Picture], max_new_tokens: int | None
    ) -> Iterator[Tensor]:
        with torch.no_grad():
            images = self.model.prompt_images(self._pixels(pictures)) if pictures else None
        return self._writer.tokens(rows, images, max_new_tokens)
