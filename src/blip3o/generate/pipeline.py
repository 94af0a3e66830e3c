"""The user's door to a model: `Blip3oPipeline`, with the habits of diffusers' pipelines."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blip3o.core.device import PrecisionName, resolve_device, resolve_dtype
from blip3o.core.errors import UsageError
from blip3o.core.types import IMAGE_MARK, Message
from blip3o.generate.images import decode_features, sample_features
from blip3o.generate.text import generate_tokens, left_pad
from blip3o.imaging.load import open_image
from blip3o.imaging.pixels import to_image, to_pixels
from blip3o.models.unified import UnifiedModel
from blip3o.text.chat import ChatTemplate
from blip3o.text.tokenizer import Tokenizer
from blip3o.weights.folder import load_model

Picture = str | Path | bytes | Image.Image
Generators = torch.Generator | Sequence[torch.Generator] | None
OutputType = Literal["pil", "np", "pt", "features"]


@dataclasses.dataclass(frozen=True)
class ImageOutput:
    """What a call of the pipeline returns.

    Args:
        images: PIL pictures, or float arrays [B, P, P, 3] in [0, 1] ("np"), or tensors
            [B, 3, P, P] in [0, 1] ("pt"), or normalized features [B, N, K] ("features"); image k
            of prompt p is number p * num_images_per_prompt + k.
    """

    images: Any


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
            tokenizer, model.config.chat, model.config.image_encoder.num_tokens
        )

    @classmethod
    def from_pretrained(
        cls, name: str | Path = "pocket", *, device: str = "auto", dtype: PrecisionName = "auto"
    ) -> "Blip3oPipeline":
        """Returns a pipeline over a bundled model or a model folder; never downloads.

        Args:
            name: "pocket" or a folder.
            device: "auto" or a torch device.
            dtype: "auto" (what the device is fast at), "fp32", "bf16" or "fp16".

        Raises:
            UsageError: if there is no such model or it is damaged.
        """
        target = resolve_device(device)
        loaded = load_model(name, target, resolve_dtype(dtype, target))
        return cls(loaded.model, loaded.tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.query_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the model's weights."""
        return self.model.query_tokens.weight.dtype

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
        rows = [self._image_prompt(self.chat_template.generate_messages(p), p) for p in prompts]
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
            UsageError: for a picture that cannot be read, or as many pictures as instructions.
        """
        texts = [instruction] if isinstance(instruction, str) else list(instruction)
        pictures = list(image) if isinstance(image, list | tuple) else [image] * len(texts)
        if len(pictures) != len(texts):
            raise UsageError(f"{len(pictures)} pictures for {len(texts)} instructions")
        features = self.encode(pictures)
        rows = [self._image_prompt(self.chat_template.edit_messages(t), t) for t in texts]
        return self._generate(
            rows,
            features,
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
        """
        pictures = list(image) if isinstance(image, list | tuple) else [image]
        features = self.model.normalizer(self.encode(pictures))
        _, pixel_noise = self._noise(len(pictures), generator)
        return ImageOutput(self._finish(features, pixel_noise, output_type))

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
            UsageError: for an empty question or a picture that cannot be read.
        """
        if not question.strip():
            raise UsageError("the question is empty")
        pictures = [] if image is None else _as_list(image)
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
            UsageError: if marks and pictures differ in number or the conversation is too long.
        """
        marks = sum(message.text.count(IMAGE_MARK) for message in messages)
        if marks != len(pictures):
            raise UsageError(f"{marks} image marks in the messages for {len(pictures)} pictures")
        row = self.chat_template.text_prompt(messages)
        limit = max_new_tokens or self.model.config.sampling.max_new_tokens
        self._check_length(row, "the conversation")
        ids, mask = left_pad([row], self.tokenizer.pad_id)
        features = self.encode(pictures) if pictures else None
        tokens = generate_tokens(
            self.model,
            ids.to(self.device),
            mask.to(self.device),
            features,
            stop_id=self.tokenizer.turn_end_id,
            pad_id=self.tokenizer.pad_id,
            max_new_tokens=limit,
        )
        yield from self._decode_stream(tokens)

    def answer_batch(
        self, pictures: Sequence[Picture], questions: Sequence[str], max_new_tokens: int = 64
    ) -> list[str]:
        """Returns the answers to one question for each picture, in one batch.

        Args:
            pictures: one for each question.
            questions: the questions.
            max_new_tokens: longest answer.
        """
        rows = [
            self.chat_template.text_prompt([Message(role="user", text=f"{IMAGE_MARK}\n{question}")])
            for question in questions
        ]
        ids, mask = left_pad(rows, self.tokenizer.pad_id)
        steps = generate_tokens(
            self.model,
            ids.to(self.device),
            mask.to(self.device),
            self.encode(pictures),
            stop_id=self.tokenizer.turn_end_id,
            pad_id=self.tokenizer.pad_id,
            max_new_tokens=max_new_tokens,
        )
        answers = torch.stack(list(steps), dim=1).tolist()
        return [self.tokenizer.decode(answer).strip() for answer in answers]

    @torch.no_grad()
    def encode(self, pictures: Sequence[Picture]) -> Tensor:
        """Returns the raw image features [M, N, C] of pictures of any size and mode.

        Args:
            pictures: files, bytes or PIL pictures.

        Raises:
            UsageError: for a picture that cannot be read.
        """
        side = self.model.config.image_encoder.image_px
        opened = [_open(picture) for picture in pictures]
        pixels = torch.stack([to_pixels(picture, side) for picture in opened])
        return self.model.encode_images(pixels.to(self.device, self.dtype))

    @torch.no_grad()
    def _generate(
        self,
        rows: list[list[int]],
        prompt_features: Tensor | None,
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
        _check_sampling(steps, scale, num_images)
        ids, mask = left_pad(rows, self.tokenizer.pad_id)
        condition = self.model.condition(
            ids.to(self.device), mask.to(self.device), prompt_features
        ).repeat_interleave(num_images, 0)
        reference = None
        if prompt_features is not None:
            reference = self.model.normalizer(prompt_features).repeat_interleave(num_images, 0)
        feature_noise, pixel_noise = self._noise(len(condition), generator)

        def on_step(step: int, features: Tensor) -> Tensor | None:
            if callback is None:
                return None
            changed = callback(self, step, steps, {"features": features})
            return (changed or {}).get("features")

        features = sample_features(
            self.model,
            condition,
            feature_noise,
            num_inference_steps=steps,
            guidance_scale=scale,
            reference=reference,
            callback=on_step,
        )
        return ImageOutput(self._finish(features, pixel_noise, output_type))

    def _noise(self, count: int, generator: Generators) -> tuple[Tensor, Tensor]:
        """Draws each picture's noise from its own generator, on the CPU: a seed means the same
        picture on every device and in every batch."""
        if isinstance(generator, torch.Generator) or generator is None:
            sources = [generator] * count
        else:
            sources = list(generator)
        if len(sources) != count:
            raise UsageError(f"{len(sources)} generators for {count} pictures")
        feature_shape = self.model.config.feature_shape
        side = self.model.config.image_decoder.image_px
        features, pixels = [], []
        for source in sources:
            features.append(torch.randn(feature_shape, generator=source))
            pixels.append(torch.randn((3, side, side), generator=source))
        place = {"device": self.device, "dtype": self.dtype}
        return torch.stack(features).to(**place), torch.stack(pixels).to(**place)

    def _finish(self, features: Tensor, pixel_noise: Tensor, output_type: OutputType) -> Any:  # noqa: ANN401
        if output_type == "features":
            return features
        steps = self.model.config.sampling.num_decoder_steps
        pixels = decode_features(self.model, features, pixel_noise, steps).float().cpu()
        if output_type == "pil":
            return to_image(pixels)
        unit = (pixels + 1) / 2
        if output_type == "pt":
            return unit
        if output_type == "np":
            return np.ascontiguousarray(unit.permute(0, 2, 3, 1).numpy())
        raise UsageError(f"unknown output_type {output_type!r}; use pil, np, pt or features")

    def _image_prompt(self, messages: Sequence[Message], text: str) -> list[int]:
        if not text.strip():
            raise UsageError("the prompt is empty; say what to draw")
        row = self.chat_template.image_prompt(messages)
        self._check_length(row, "the prompt")
        return row

    def _check_length(self, row: list[int], what: str) -> None:
        config = self.model.config
        limit = config.backbone.max_positions - config.num_query_tokens
        if len(row) > limit:
            raise UsageError(f"{what} has {len(row)} tokens; at most {limit} fit this model")

    def _decode_stream(self, tokens: Iterator[Tensor]) -> Iterator[str]:
        """Turns token ids into text as soon as it is whole characters."""
        ids: list[int] = []
        shown = ""
        for token in tokens:
            ids.append(int(token[0]))
            text = self.tokenizer.decode(ids)
            if not text.endswith("\ufffd") and len(text) > len(shown):
                yield text[len(shown) :]
                shown = text


def _open(picture: Picture) -> Image.Image:
    return open_image(picture) if not isinstance(picture, Image.Image) else picture.convert("RGB")


def _as_list(image: Picture | Sequence[Picture]) -> list[Picture]:
    return list(image) if isinstance(image, list | tuple) else [image]  # type: ignore[list-item]


def _check_sampling(num_inference_steps: int, guidance_scale: float, num_images: int) -> None:
    if not 1 <= num_inference_steps <= 1000:
        raise UsageError(f"num_inference_steps must be 1 to 1000, got {num_inference_steps}")
    if not 1.0 <= guidance_scale <= 100.0:
        raise UsageError(f"guidance_scale must be 1 to 100, got {guidance_scale}")
    if not 1 <= num_images <= 1000:
        raise UsageError(f"the number of images must be 1 to 1000, got {num_images}")
