"""Tolerant decoding of data URIs.

The decoder accepts wrapped lines, standard and URL-safe base64, missing padding, any parameters, a
missing media type, and percent-encoding.
"""

import base64
import re
from urllib.parse import unquote_to_bytes

from blip3o.core.errors import UsageError
from blip3o.imaging.kinds import format_of

HINT = "a data URI of an image begins with data:image/png;base64,"
_OTHER_LETTERS = re.compile(r"[^A-Za-z0-9+/]")
_URL_SAFE = str.maketrans("-_", "+/")


class TooLongError(Exception):
    """A data URI contains more bytes than allowed."""


def is_data_uri(url: str) -> bool:
    """Whether a URL is a data URI."""
    return url[:64].lstrip()[:5].lower() == "data:"


def has_image_type(url: str) -> bool:
    """Whether the media type of a data URI is missing or that of an image."""
    kind = url.lstrip()[5:].partition(",")[0].partition(";")[0].strip().lower()
    return not kind or kind.startswith("image/")


def data_of(url: str, max_bytes: int) -> bytes:
    """Returns the bytes in a data URI of any media type.

    Args:
        url: the URI.
        max_bytes: largest number of bytes.

    Raises:
        UsageError: if it is not valid.
        TooLongError: if it contains more than `max_bytes`.
    """
    head, comma, text = url.lstrip()[5:].partition(",")
    if not comma:
        raise UsageError(f"the data URI has no comma; {HINT}")
    parameters = [one.strip().lower() for one in head.split(";")[1:]]
    if "base64" in parameters:
        return _from_base64(text, max_bytes)
    if len(text) > 3 * max_bytes:
        raise TooLongError
    data = unquote_to_bytes("".join(text.split()))
    if format_of(data) is None:
        try:  # some clients omit the word base64
            guess = _from_base64(text, max_bytes)
        except UsageError:
            guess = b""
        data = guess if format_of(guess) is not None else data
    if len(data) > max_bytes:
        raise TooLongError
    return data


def _from_base64(text: str, max_bytes: int) -> bytes:
    if "%" in text:
        text = unquote_to_bytes(text).decode("latin-1")
    text = "".join(text.split()).translate(_URL_SAFE).rstrip("=")
    if len(text) > 4 * (max_bytes // 3 + 1):
        raise TooLongError
    if (other := _OTHER_LETTERS.search(text)) is not None:
        raise UsageError(f"invalid base64: {other[0]!a} at position {other.start()} is not allowed")
    if len(text) % 4 == 1:
        raise UsageError("invalid base64: its last character is missing")
    data = base64.b64decode(text + "=" * (-len(text) % 4))
    if len(data) > max_bytes:
        raise TooLongError
    return data
