"""Checks user input and converts it to the model's form: images, texts, noise and callbacks."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.types import IMAGE_MARK, Message
from blip3o.flow.solver import StepCallback
from blip3o.generate.checks import check_prompt
from blip3o.imaging.fit import aspect_pixels, keep_aspect
from blip3o.imaging.pixels import to_pixels
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.text.chat import ChatTemplate

ImageInput = str | Path | bytes | Image.Image
"""An image file, its bytes, or a PIL image; of any size and mode."""
Generators = torch.Generator | Sequence[torch.Generator] | None

_PipelineT = TypeVar("_PipelineT")


def as_images(image: ImageInput | Sequence[ImageInput]) -> list[ImageInput]:
    """Returns one or several images as a list."""
    if isinstance(image, str | Path | bytes | Image.Image) or not isinstance(image, Sequence):
        return [image]  # anything else is rejected when it is opened
    return list(image)


def some_for_each(
    image: ImageInput | Sequence[ImageInput | Sequence[ImageInput]], texts: Sequence[str]
) -> list[list[ImageInput]]:
    """Returns the images of each text; a single image, not in a list, serves all texts.

    Args:
        image: one image for all texts, or for each text one image or a list of images.
        texts: the texts.

    Raises:
        UsageError: if the numbers of images and texts differ, or a text has no image.
    """
    is_one = isinstance(image, str | Path | bytes | Image.Image) or not isinstance(image, Sequence)
    several: list[Any] = [image] * len(texts) if is_one else list(image)
    if len(several) != len(texts):
        raise UsageError(f"{len(several)} images for {len(texts)} instructions")
    images = [as_images(one) for one in several]
    if not all(images):
        raise UsageError("an instruction has no image")
    return images


def messages_of(messages: Iterable[Message]) -> list[Message]:
    """Returns the turns of a conversation as a list.

    Raises:
        UsageError: for anything that is not a `Message`.
    """
    found = list(messages) if isinstance(messages, Iterable) else [messages]
    for one in found:
        if not isinstance(one, Message) or not isinstance(one.text, str):
            raise UsageError(
                f"a turn of a conversation is blip3o.Message(role=..., text=...), not {one!r}"
            )
    return found


def open_input(image: ImageInput) -> Image.Image:
    """Returns an image as upright 8-bit RGB, with transparent parts on white.

    Args:
        image: a file, bytes, or a PIL image.

    Raises:
        UsageError: if it cannot be read.
    """
    from blip3o.imaging.load import (
        open_image,
        open_pil,
    )  # a request without images needs no readers

    if isinstance(image, str | Path | bytes):
        return open_image(image)
    if not isinstance(image, Image.Image):
        raise UsageError(f"an image is a file, bytes or a PIL image, not {type(image)}")
    try:
        return open_pil(image)  # PIL reads files lazily, so a truncated file fails here
    except UsageError:
        raise
    except Exception as error:  # PIL's decoders raise many kinds of exceptions
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"the image is damaged or truncated: {reason}") from error


def square_pixels(model: UnifiedModel, images: Sequence[ImageInput]) -> Tensor:
    """Returns images as pixels [M, 3, P, P] of the image encoder's size, in [-1, 1].

    Args:
        model: defines the size, the device and the type.
        images: one or more images; they are stretched to a square, as in the released inference.

    Raises:
        UsageError: if an image cannot be read.
    """
    side = model.config.image_encoder.image_px
    pixels = torch.stack([to_pixels(open_input(one), side) for one in images])
    return pixels.to(model.device, model.dtype)


def question_pixels(
    model: UnifiedModel, images: Sequence[ImageInput]
) -> tuple[Tensor | list[Tensor] | None, list[int] | None]:
    """Returns the pixels and the token counts of the images of questions.

    Args:
        model: defines the fit (`question_images` of its config), the device and the type.
        images: any number of images.

    Returns:
        Pixels in [-1, 1]: squares [M, 3, P, P], or images [3, H, W] of their own shapes; None for
        no images. And the number of tokens of each image; None if each has the chat template's
        number.

    Raises:
        UsageError: if an image cannot be read.
    """
    if not images:
        return None, None
    fit, place = model.config.question_images, (model.device, model.dtype)
    opened = [open_input(one) for one in images]
    if fit.mode != "aspect":
        side = model.config.image_encoder.image_px
        return torch.stack([to_pixels(one, side, fit.mode) for one in opened]).to(*place), None
    token_px = _token_px(model.config)
    pixels = [aspect_pixels(one, token_px, fit).to(*place) for one in opened]
    return pixels, question_token_counts(model.config, [one.size for one in opened])


def question_token_counts(
    config: UnifiedModelConfig, sizes: Sequence[tuple[int, int]]
) -> list[int] | None:
    """Returns the number of tokens of each image of a question, as `question_pixels` does.

    Args:
        config: config of the model.
        sizes: width and height of each image in pixels, turned upright or not.

    Returns:
        None if each image has the chat template's number of tokens.

    Raises:
        UsageError: if an image is too thin.
    """
    fit = config.question_images
    if fit.mode != "aspect" or not sizes:
        return None
    token_px = _token_px(config)
    fitted = [keep_aspect(size, token_px, fit.min_pixels, fit.max_pixels) for size in sizes]
    return [width * height // token_px**2 for width, height in fitted]


def _token_px(config: UnifiedModelConfig) -> int:
    token_px = config.backbone.token_px
    assert token_px is not None, "the config checks that the mode aspect has such a backbone"
    return token_px


def drawing_prompt(
    model: UnifiedModel, chat: ChatTemplate, messages: Sequence[Message], text: str
) -> list[int]:
    """Returns the token ids of a prompt for an image.

    Args:
        model: limits the length.
        chat: the model's chat format.
        messages: the conversation that requests the image.
        text: the user's text in the conversation.

    Raises:
        UsageError: if the text is empty, too long or holds an image mark.
    """
    check_prompt(text)
    if IMAGE_MARK in text:
        raise UsageError(f"a prompt cannot hold {IMAGE_MARK}; images are given separately")
    row = chat.image_prompt(messages)
    check_length(model, row, "the prompt")
    return row


def check_length(model: UnifiedModel, row: list[int], name: str) -> None:
    """Checks that a prompt fits the model; the rest of the positions is for images and answers.

    Raises:
        UsageError: if the prompt is too long; `name` is the subject of the message.
    """
    limit = model.config.max_prompt_tokens
    if len(row) > limit:
        raise UsageError(f"{name} has {len(row)} tokens; at most {limit} fit this model")


def model_noise(model: UnifiedModel, count: int, generator: Generators) -> tuple[Tensor, Tensor]:
    """Returns the noise of the generator and of the image decoder, [B, N, K] and [B, *noise_shape].

    Args:
        model: defines the shapes, the device and the type.
        count: number of images (B).
        generator: see `draw_noise`.

    Raises:
        UsageError: if the number of generators is neither 1 nor B.
    """
    shapes = (model.config.feature_shape, model.config.image_decoder.noise_shape)
    features, pixels = draw_noise(shapes, count, generator)
    return features.to(model.device, model.dtype), pixels.to(model.device, model.dtype)


def draw_noise(
    shapes: Sequence[Sequence[int]], count: int, generator: Generators
) -> tuple[Tensor, ...]:
    """Returns standard normal noise of a batch, one tensor [B, *shape] for each shape, float32.

    All noise of an image is drawn before that of the next image. So an image with its own generator
    is the same alone and in any batch.

    Args:
        shapes: shapes of the noise of one image, in order.
        count: number of images (B).
        generator: one for all images, one for each image, or None for torch's own.

    Raises:
        UsageError: if the number of generators is neither 1 nor B.
    """
    if isinstance(generator, torch.Generator) or generator is None:
        sources = [generator] * count
    else:
        sources = list(generator) if isinstance(generator, Iterable) else [generator]
    for one in sources:
        if not isinstance(one, torch.Generator | None):
            raise UsageError(
                f"a generator is torch.Generator().manual_seed(SEED), not {one!r}; give one, or "
                "one for each image"
            )
    if len(sources) != count:
        raise UsageError(f"{len(sources)} generators for {count} images")
    rows = [
        [
            # Drawn on the generator's device, the CPU by default, so a seed gives one image.
            torch.randn(
                tuple(shape), generator=one, device="cpu" if one is None else one.device
            ).cpu()
            for shape in shapes
        ]
        for one in sources
    ]
    return tuple(torch.stack(drawn) for drawn in zip(*rows, strict=True))


def step_callback(
    pipe: _PipelineT,
    callback: Callable[[_PipelineT, int, int, dict[str, Tensor]], Mapping[str, Tensor] | None]
    | None,
    num_steps: int,
) -> StepCallback | None:
    """Returns a user's `callback_on_step_end` in the form that a solver calls; None for None.

    Args:
        pipe: passed to the callback.
        callback: the user's function, or None.
        num_steps: passed to the callback.

    Raises:
        UsageError: if the callback is not a function.
    """
    if callback is None:
        return None  # without a callback, a sampler may run all steps as one graph
    if not callable(callback):
        raise UsageError(f"callback_on_step_end must be a function, got {callback!r}")

    def on_step(step: int, features: Tensor) -> Tensor | None:
        changed = (callback(pipe, step, num_steps, {"features": features}) or {}).get("features")
        if changed is not None and changed.shape != features.shape:
            shapes = f"{list(changed.shape)} instead of {list(features.shape)}"
            raise UsageError(f"the callback returned features of shape {shapes}")
        return changed

    return on_step
