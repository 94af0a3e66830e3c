"""Where a record's captions are: data sets give their field several names, in any case."""

from collections.abc import Mapping
from typing import Any

CAPTION_FIELDS = ("caption", "text", "prompt", "txt")
"""Names of the field of a caption, or of several; the first that is there counts."""


def captions_of(fields: Mapping[str, Any]) -> list[Any] | None:
    """Returns what a record gives as its captions, each unchecked.

    Args:
        fields: the record's fields.

    Returns:
        None if it gives none, an empty list if its field `captions` is no list.
    """
    fields = {**{name.lower(): value for name, value in fields.items()}, **fields}
    if several := fields.get("captions"):
        return several if isinstance(several, list) else []
    value = next((fields[name] for name in CAPTION_FIELDS if fields.get(name) is not None), None)
    if value is None:
        return None
    return value if isinstance(value, list) and value else [value]


def without_captions(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields but those that hold captions.

    Args:
        fields: the record's fields.
    """
    return {k: v for k, v in fields.items() if k.lower() not in ("captions", *CAPTION_FIELDS)}
