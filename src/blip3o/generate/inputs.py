"""What users hand to a pipeline, checked and put into one form: pictures, numbers, generators."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.flow.solver import StepCallback
from blip3o.imaging.load import open_image, to_rgb, upright

Picture = str | Path | bytes | Image.Image
"""A file, the bytes of one, or a PIL picture; of any size and mode."""
Generators = torch.Generator | Sequence[torch.Generator] | None
OUTPUT_TYPES = ("pil", "np", "pt", "features")


def as_pictures(image: Picture | Sequence[Picture]) -> list[Picture]:
    """Returns one or several pictures as a list."""
    return list(image) if isinstance(image, list | tuple) else [image]  # type: ignore[list-item]


def one_for_each(image: Picture | Sequence[Picture], texts: Sequence[str]) -> list[Picture]:
    """Returns a picture for each text: those given, or a single one for all.

    Raises:
        UsageError: for another number of pictures than of texts.
    """
    pictures = as_pictures(image)
    if not isinstance(image, list | tuple):
        pictures = pictures * len(texts)
    if len(pictures) != len(texts):
        raise UsageError(f"{len(pictures)} pictures for {len(texts)} instructions")
    return pictures


def open_picture(picture: Picture) -> Image.Image:
    """Returns a picture as upright 8-bit RGB, transparent parts on white.

    Args:
        picture: a file, bytes, or a PIL picture, which is read the same way.

    Raises:
        UsageError: if it cannot be read.
    """
    if isinstance(picture, str | Path | bytes):
        return open_image(picture)
    if not isinstance(picture, Image.Image):
        raise UsageError(f"a picture is a file, bytes or a PIL picture, not {type(picture)}")
    try:
        # PIL reads files late: a truncated one shows itself only here.
        return to_rgb(upright(picture))
    except UsageError:
        raise
    except Exception as error:  # decoders raise all kinds of things for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"the picture is damaged or truncated: {reason}") from error


def check_sampling(
    num_inference_steps: int, guidance_scale: float, num_images: int, output_type: str
) -> None:
    """Checks the numbers of a call.

    Raises:
        UsageError: for a number out of range or an unknown output type.
    """
    if not 1 <= num_inference_steps <= 1000:
        raise UsageError(f"num_inference_steps must be 1 to 1000, got {num_inference_steps}")
    if not 1.0 <= guidance_scale <= 100.0:
        raise UsageError(f"guidance_scale must be 1 to 100, got {guidance_scale}")
    if not 1 <= num_images <= 1000:
        raise UsageError(f"the number of images must be 1 to 1000, got {num_images}")
    check_output_type(output_type)


def check_output_type(output_type: str) -> None:
    """Checks what a call is to return.

    Raises:
        UsageError: for an unknown output type.
    """
    if output_type not in OUTPUT_TYPES:
        raise UsageError(f"unknown output_type {output_type!r}; use {', '.join(OUTPUT_TYPES)}")


def draw_noise(
    shapes: Sequence[Sequence[int]], count: int, generator: Generators
) -> tuple[Tensor, ...]:
    """Returns standard normal numbers for a batch, one tensor [B, *shape] for each shape, float32.

    Each picture draws all of its noise from its own generator, or from one generator in turn, so
    the same generator gives the same picture alone and in any batch.

    Args:
        shapes: what one picture draws, in order.
        count: pictures (B).
        generator: one for all, one for each picture, or None for torch's own.

    Raises:
        UsageError: for another number of generators.
    """
    if isinstance(generator, torch.Generator) or generator is None:
        sources = [generator] * count
    else:
        sources = list(generator)
    if len(sources) != count:
        raise UsageError(f"{len(sources)} generators for {count} pictures")
    rows = [
        [
            # On the CPU unless the caller's generator lives elsewhere: a seed means one picture.
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

    def on_step(step: int, features: Tensor) -> Tensor | None:
        changed = (callback(pipe, step, num_steps, {"features": features}) or {}).get("features")
        if changed is not None and changed.shape != features.shape:
            shapes = f"{list(changed.shape)} instead of {list(features.shape)}"
            raise UsageError(f"the callback returned features of shape {shapes}")
        return changed

    return on_step
