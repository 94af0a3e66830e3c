"""Captions of a record. Data sets use several field names, in any case."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from blip3o.core.types import IMAGE_MARK
from blip3o.data.conversations import check_text

CAPTION_FIELDS = ("caption", "text", "prompt", "txt")
"""Field names of one caption or a list of captions; the first field with a value counts."""


def captions_of(fields: Mapping[str, Any]) -> list[Any] | None:
    """Returns the captions of a record, unchecked.

    Returns:
        None if the record has no captions, an empty list if its field `captions` is not a list.
    """
    fields = {**{name.lower(): value for name, value in fields.items()}, **fields}
    if several := fields.get("captions"):
        return several if isinstance(several, list) else []
    value = next((fields[name] for name in CAPTION_FIELDS if fields.get(name) is not None), None)
    if value is None:
        return None
    return value if isinstance(value, list) and value else [value]


def without_captions(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all fields that do not hold captions."""
    return {k: v for k, v in fields.items() if k.lower() not in ("captions", *CAPTION_FIELDS)}


def draw_caption(fields: Mapping[str, Any], rng: np.random.Generator) -> str:
    """Returns a random caption of a record; ValueError if it has none or the chosen one is bad."""
    captions = captions_of(fields)
    if captions is None:
        raise ValueError("the record has no 'caption'")
    if not captions:
        raise ValueError("'captions' is not a list")
    caption = captions[int(rng.integers(len(captions)))]
    if not isinstance(caption, str) or not caption.strip():
        raise ValueError("the caption is empty or not a text")
    check_words(caption)
    return caption.strip()


def check_words(words: str) -> None:
    """Raises ValueError if a caption or an instruction holds an image mark or invalid Unicode."""
    if IMAGE_MARK in words:  # it would stand for an image that the record does not have
        raise ValueError(f"{IMAGE_MARK} in a caption or an instruction")
    check_text(words)
