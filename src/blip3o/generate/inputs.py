"""What users hand to a pipeline, checked and put into one form: images, numbers, generators."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.types import Message
from blip3o.flow.solver import StepCallback
from blip3o.imaging.load import open_image, open_pil

ImageInput = str | Path | bytes | Image.Image
"""A file, the bytes of one, or a PIL image; of any size and mode."""
Generators = torch.Generator | Sequence[torch.Generator] | None


def as_images(image: ImageInput | Sequence[ImageInput]) -> list[ImageInput]:
    """Returns one or several images as a list."""
    return list(image) if isinstance(image, list | tuple) else [image]  # type: ignore[list-item]


def one_for_each(
    image: ImageInput | Sequence[ImageInput], texts: Sequence[str]
) -> list[ImageInput]:
    """Returns an image for each text: those given, or a single one for all.

    Raises:
        UsageError: for another number of images than of texts.
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
    found: list[Any] = list(messages) if isinstance(messages, Iterable) else [messages]
    for one in found:
        if not isinstance(one, Message) or not isinstance(one.text, str):
            raise UsageError(
                f"a turn of a conversation is blip3o.Message(role=..., text=...), not {one!r}"
            )
    return found


def open_input(image: ImageInput) -> Image.Image:
    """Returns an image as upright 8-bit RGB, transparent parts on white.

    Args:
        image: a file, bytes, or a PIL image, which is read the same way.

    Raises:
        UsageError: if it cannot be read.
    """
    if isinstance(image, str | Path | bytes):
        return open_image(image)
    if not isinstance(image, Image.Image):
        raise UsageError(f"an image is a file, bytes or a PIL image, not {type(image)}")
    try:
        return open_pil(image)  # PIL reads files late: a truncated one shows itself only here
    except UsageError:
        raise
    except Exception as error:  # decoders raise all kinds of things for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"the image is damaged or truncated: {reason}") from error


def draw_noise(
    shapes: Sequence[Sequence[int]], count: int, generator: Generators
) -> tuple[Tensor, ...]:
    """Returns standard normal numbers for a batch, one tensor [B, *shape] for each shape, float32.

    Each image draws all of its noise from its own generator, or from one generator in turn, so
    the same generator gives the same image alone and in any batch.

    Args:
        shapes: what one image draws, in order.
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
            # On the CPU unless the caller's generator lives elsewhere: a seed means one image.
            torch.randn(
                tuple(shape), generator=one, device="cpu" if one is None else one.device
            ).cpu()
            for shape in shapes
        ]
        for one in sources
    ]
    return tuple(torch.stack(drawn) for drawn in zip(*rows, strict=True))


def step_callback(
    pipe: Any,  # noqa: ANN401  (what the user called)
    callback: Callable[..., Any] | None,
    num_steps: int,
) -> StepCallback | None:
    """Returns a user's `callback_on_step_end` as the solver calls it; None where there is none.

    Args:
        pipe: handed to the callback.
        callback: the user's function, or None.
        num_steps: handed to the callback.
    """
    if callback is None:
        return None  # nobody wants to see the steps: a sampler may take them all at once
    if not callable(callback):
        raise UsageError(f"callback_on_step_end must be a function, got {callback!r}")

    def on_step(step: int, features: Tensor) -> Tensor | None:
        changed = (callback(pipe, step, num_steps, {"features": features}) or {}).get("features")
        if changed is not None and changed.shape != features.shape:
            shapes = f"{list(changed.shape)} instead of {list(features.shape)}"
            raise UsageError(f"the callback returned features of shape {shapes}")
        return changed

    return on_step
