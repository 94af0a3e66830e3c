"""User input in the form that a model takes: images, texts, noise and callbacks, all checked."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

import torch
from PIL import Image
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.types import IMAGE_MARK, Message
from blip3o.flow.solver import StepCallback
from blip3o.generate.checks import check_prompt
from blip3o.imaging.fit import aspect_pixels, keep_aspect
from blip3o.imaging.load import open_image, open_pil
from blip3o.imaging.pixels import to_pixels
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.text.chat import ChatTemplate

ImageInput = str | Path | bytes | Image.Image
"""An image file, its bytes, or a PIL image; of any size and mode."""
Generators = torch.Generator | Sequence[torch.Generator] | None

_PipelineT = TypeVar("_PipelineT")


def as_images(image: ImageInput | Sequence[ImageInput]) -> list[ImageInput]:
    """Returns one or several images as a list."""
    return list(image) if isinstance(image, list | tuple) else [cast("ImageInput", image)]


def one_for_each(
    image: ImageInput | Sequence[ImageInput], texts: Sequence[str]
) -> list[ImageInput]:
    """Returns an image for each text: those given, or a single one for all.

    Raises:
        UsageError: if the numbers of images and texts differ.
    """
    images = as_images(image)
    if not isinstance(image, list | tuple):
        images = images * len(texts)
    if len(images) != len(texts):
        raise UsageError(f"{len(images)} images for {len(texts)} instructions")
    return images


def messages_of(messages: Iterable[Message]) -> list[Message]:
    """Returns the turns of a conversation as a list.

    Raises:
        UsageError: for anything that is not a `Message`.
    """
    found: list[object] = list(messages) if isinstance(messages, Iterable) else [messages]
    checked = [one for one in found if isinstance(one, Message) and isinstance(one.text, str)]
    for one in found:
        if not isinstance(one, Message) or not isinstance(one.text, str):
            raise UsageError(
                f"a turn of a conversation is blip3o.Message(role=..., text=...), not {one!r}"
            )
    return checked


def open_input(image: ImageInput) -> Image.Image:
    """Returns an image as upright 8-bit RGB, transparent parts on white.

    Args:
        image: a file, bytes, or a PIL image; all are read the same way.

    Raises:
        UsageError: if it cannot be read.
    """
    if isinstance(image, str | Path | bytes):
        return open_image(image)
    if not isinstance(image, Image.Image):
        raise UsageError(f"an image is a file, bytes or a PIL image, not {type(image)}")
    try:
        return open_pil(image)  # PIL reads files lazily, so a truncated one fails only here
    except UsageError:
        raise
    except Exception as error:  # decoders raise all kinds of exceptions for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"the image is damaged or truncated: {reason}") from error


def square_pixels(model: UnifiedModel, images: Sequence[ImageInput]) -> Tensor:
    """Returns images as pixels [M, 3, P, P] of the image encoder's size, in [-1, 1].

    Args:
        model: defines the size, the device and the type.
        images: one or more; other shapes are stretched, as in the released inference.

    Raises:
        UsageError: if an image cannot be read.
    """
    side = model.config.image_encoder.image_px
    pixels = torch.stack([to_pixels(open_input(one), side) for one in images])
    return pixels.to(model.device, model.dtype)


def question_pixels(
    model: UnifiedModel, images: Sequence[ImageInput]
) -> tuple[Tensor | list[Tensor] | None, list[int] | None]:
    """Returns images of questions, fitted as the model's config defines, and their token counts.

    Args:
        model: defines the fit, the device and the type.
        images: any number.

    Returns:
        Squares [M, 3, P, P] or images [3, H, W] of their own shapes; None for no images. And the
        number of tokens of each image, None if all have the chat template's number.

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
    token_px = model.config.backbone.token_px
    pixels = [aspect_pixels(one, token_px, fit).to(*place) for one in opened]
    return pixels, question_token_counts(model.config, [one.size for one in opened])


def question_token_counts(
    config: UnifiedModelConfig, sizes: Sequence[tuple[int, int]]
) -> list[int] | None:
    """Returns the number of tokens of each image of a question, as `question_pixels` does.

    Args:
        config: of the model.
        sizes: width and height of each image in pixels, turned upright or not.

    Returns:
        None if all have the chat template's number.

    Raises:
        UsageError: if an image is too thin.
    """
    fit = config.question_images
    if fit.mode != "aspect" or not sizes:
        return None
    token_px = config.backbone.token_px
    fitted = [keep_aspect(size, token_px, fit.min_pixels, fit.max_pixels) for size in sizes]
    return [width * height // token_px**2 for width, height in fitted]


def drawing_prompt(
    model: UnifiedModel, chat: ChatTemplate, messages: Sequence[Message], text: str
) -> list[int]:
    """Returns the token ids of a prompt of an image.

    Args:
        model: limits the length.
        chat: its chat format.
        messages: the conversation that asks for the image.
        text: the user's text in it.

    Raises:
        UsageError: for an empty or over-long text, or one that holds an image mark.
    """
    check_prompt(text)
    if IMAGE_MARK in text:
        raise UsageError(f"{IMAGE_MARK} in a prompt; images are given beside the text")
    row = chat.image_prompt(messages)
    check_length(model, row, "the prompt")
    return row


def check_length(model: UnifiedModel, row: list[int], name: str) -> None:
    """Checks that a prompt leaves room for the generator, and an answer for some words.

    Raises:
        UsageError: if it does not; `name` is the subject of the message.
    """
    limit = model.config.max_prompt_tokens
    if len(row) > limit:
        raise UsageError(f"{name} has {len(row)} tokens; at most {limit} fit this model")


def model_noise(model: UnifiedModel, count: int, generator: Generators) -> tuple[Tensor, Tensor]:
    """Returns the noise of the generator and of the image decoder, [B, N, K] and [B, *noise_shape].

    Args:
        model: defines the shapes, the device and the type.
        count: images (B).
        generator: see `draw_noise`.

    Raises:
        UsageError: for another number of generators.
    """
    shapes = (model.config.feature_shape, model.config.image_decoder.noise_shape)
    features, pixels = draw_noise(shapes, count, generator)
    return features.to(model.device, model.dtype), pixels.to(model.device, model.dtype)


def draw_noise(
    shapes: Sequence[Sequence[int]], count: int, generator: Generators
) -> tuple[Tensor, ...]:
    """Returns standard normal noise of a batch, one tensor [B, *shape] for each shape, float32.

    Each image draws all of its noise from its own generator, or from one generator in turn, so the
    same generator gives the same image alone and in any batch.

    Args:
        shapes: shapes of the noise of one image, in order.
        count: images (B).
        generator: one for all, one for each image, or None for torch's own.

    Raises:
        UsageError: for another number of generators.
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
            # On the CPU unless the caller's generator is elsewhere: a seed means one image.
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
        return None  # no one watches the steps, so a sampler may run them as one graph
    if not callable(callback):
        raise UsageError(f"callback_on_step_end must be a function, got {callback!r}")

    def on_step(step: int, features: Tensor) -> Tensor | None:
        changed = (callback(pipe, step, num_steps, {"features": features}) or {}).get("features")
        if changed is not None and changed.shape != features.shape:
            shapes = f"{list(changed.shape)} instead of {list(features.shape)}"
            raise UsageError(f"the callback returned features of shape {shapes}")
        return changed

    return on_step
