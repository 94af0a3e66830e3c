"""Checks of a request that need neither torch nor a model, so a wrong request fails early."""

import math
import operator
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from blip3o.core.errors import UsageError, reason_of
from blip3o.core.files import check_file, read_lines
from blip3o.core.log import say

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Formats of the image files that can be written, in Pillow's names, by suffix."""
OUTPUT_TYPES = ("pil", "np", "pt", "features")
_MOST_STEPS = 1000
_MOST_IMAGES = 1000
_MOST_GUIDANCE = 100.0
_NEW_SEED = -1
"""Requests a new seed."""
_SEEDS = 2**32


def check_sampling(
    num_inference_steps: int | None,
    guidance_scale: float | None,
    num_images: int,
    output_type: str = "pil",
) -> None:
    """Checks the numbers and the output type of a call.

    Args:
        num_inference_steps: 1 to 1000; None for the model's own number.
        guidance_scale: 1 to 100; None for the model's own number.
        num_images: images of each prompt, 1 to 1000.
        output_type: one of `OUTPUT_TYPES`.

    Raises:
        UsageError: for a number out of range or of another type, or an unknown output type.
    """
    if num_inference_steps is not None:
        check_steps("num_inference_steps", num_inference_steps)
    if guidance_scale is not None:
        check_guidance("guidance_scale", guidance_scale)
    check_whole("the number of images", num_images, _MOST_IMAGES)
    check_output_type(output_type)


def check_steps(name: str, value: int) -> None:
    """Raises a UsageError unless `value` is a whole number from 1 to 1000; `name` is its name."""
    check_whole(name, value, _MOST_STEPS)


def check_whole(name: str, value: int, most: int) -> None:
    """Raises a UsageError unless `value` is a whole number from 1 to `most`; `name` is its name."""
    try:
        number = operator.index(value)
    except TypeError:
        raise UsageError(f"{name} must be a whole number, got {value!r}") from None
    if isinstance(value, bool) or not 1 <= number <= most:
        raise UsageError(f"{name} must be 1 to {most}, got {value!r}")


def check_guidance(name: str, value: float) -> None:
    """Raises a UsageError unless `value` is a number from 1 to 100; `name` is its name."""
    try:
        number = math.nan if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 1.0 <= number <= _MOST_GUIDANCE:
        raise UsageError(f"{name} must be 1 to {_MOST_GUIDANCE:g}, got {value!r}")


def check_output_type(output_type: str) -> None:
    """Raises a UsageError for an unknown output type."""
    if output_type not in OUTPUT_TYPES:
        raise UsageError(f"unknown output_type {output_type!r}; use {', '.join(OUTPUT_TYPES)}")


def texts_of(texts: str | Iterable[str], what: str) -> list[str]:
    """Returns one or several texts as a list.

    Args:
        texts: one text, or several.
        what: name of a text in error messages, such as "prompt".

    Raises:
        UsageError: for anything else.
    """
    if isinstance(texts, str):
        return [texts]
    single: tuple[type[object], ...] = (bytes, Mapping)
    is_many = isinstance(texts, Iterable) and not isinstance(texts, single)
    found: list[str] = []
    for one in texts if is_many else [texts]:
        if not isinstance(one, str):
            raise UsageError(f"the {what} must be a text, got {one!r}")
        found.append(one)
    return found


def read_prompts(file: Path) -> list[str]:
    """Returns the non-empty lines of a file.

    Args:
        file: one prompt a line; see `read_lines`.

    Raises:
        UsageError: if the file cannot be read or holds no prompt.
    """
    prompts = [line.strip(" \t") for line in read_lines(file, "prompts") if line.strip()]
    if not prompts:
        raise UsageError(f"{file} holds no prompt")
    return prompts


def check_prompt(text: str) -> None:
    """Raises a UsageError for a prompt or an instruction that is empty or not valid Unicode."""
    _check_text(text, "prompt", "; say what to draw")


def check_question(text: str) -> None:
    """Raises a UsageError for a question that is empty or not valid Unicode."""
    _check_text(text, "question")


def _check_text(text: str, what: str, advice: str = "") -> None:
    if not text.strip():
        raise UsageError(f"the {what} is empty{advice}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the {what} is not valid Unicode: {text[:40]!r}") from error


def check_image_path(path: Path) -> None:
    """Checks, before any work is done, that an image can be written to a path.

    Raises:
        UsageError: if the suffix is not one of `FORMATS`, the path is a folder, or its folder
            cannot be written to.
    """
    check_suffix(path)
    check_file(path)


def check_suffix(path: Path) -> None:
    """Raises a UsageError unless the suffix of a path is one of `FORMATS`."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"cannot write {path}: use a name that ends in .png, .jpg or .webp")


def check_readable(file: str) -> None:
    """Checks that an image file exists and may be read, without reading it.

    Raises:
        UsageError: if it does not exist or may not be read.
    """
    try:
        os.stat(file)
    except FileNotFoundError as error:
        raise UsageError(f"no such image: {file}") from error
    except (OSError, ValueError) as error:  # too long, in a folder without permission, a zero byte
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise UsageError(f"cannot read {file}: {reason}") from error
    if not os.access(file, os.R_OK):
        raise UsageError(f"cannot read {file}: permission denied")


def drawn_seed(seed: int) -> int:
    """Returns the seed of a call; for -1 it draws a seed and logs it, so the call can be repeated.

    Args:
        seed: the user's seed, or -1.
    """
    if seed != _NEW_SEED:
        return seed
    drawn = secrets.randbelow(_SEEDS)
    say(f"seed {drawn}")
    return drawn
