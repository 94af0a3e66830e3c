"""Where a record's captions are: data sets give their field several names, in any case."""

from collections.abc import Mapping
from typing import Any

CAPTION_FIELDS = ("caption", "text", "prompt", "txt")
"""Names of the field of a caption, or of several; the first that is there counts."""


def captions_of(fields: Mapping[str, Any]) -> Any:  # noqa: ANN401  (whatever the file holds)
    """Returns what a record gives as its captions, unchecked.

    Args:
        fields: the record's fields.

    Returns:
        What stands in `captions`, or else a list of what stands in the first of `CAPTION_FIELDS`;
        None if there is none.
    """
    fields = {**{name.lower(): value for name, value in fields.items()}, **fields}
    if fields.get("captions"):
        return fields["captions"]
    for name in CAPTION_FIELDS:
        if fields.get(name) is not None:
            value = fields[name]
            return value if isinstance(value, list) and value else [value]
    return None


def without_captions(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields but those that hold captions.

    Args:
        fields: the record's fields.
    """
    return {k: v for k, v in fields.items() if k.lower() not in ("captions", *CAPTION_FIELDS)}
