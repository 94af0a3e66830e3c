"""What requests and their answers use of a server: tokens and images, which cost money."""

import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Protocol

from PIL import Image

_BYTES_PER_TOKEN = 3
"""English has about 4 bytes per token, other languages have fewer."""
_PX_PER_TOKEN = 28
"""Side in pixels of the part of an image that is one token, as Qwen2.5-VL counts them."""
_USUAL_IMAGE_TOKENS = 1000
_TOKENS_PER_MESSAGE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """The amounts of a request or of its answer.

    Args:
        prompt_tokens: tokens that the server reads; 0 in an answer if it does not count them.
        completion_tokens: tokens that it writes.
        num_images: number of images that it reads; they are part of `prompt_tokens`.
        num_drawn: number of images that it draws.
    """

    prompt_tokens: int
    completion_tokens: int
    num_images: int = 0
    num_drawn: int = 0


class HasUsage(Protocol):
    """A request, or its answer."""

    def usage(self) -> Usage:
        """Returns the most that a request may use, roughly; what an answer used, as counted."""
        ...


def prompt_tokens(texts: Sequence[str], images: Sequence[bytes]) -> int:
    """Returns the tokens of one message, roughly.

    Args:
        texts: texts of the message.
        images: files of its images.
    """
    num_bytes = sum(len(text.encode(errors="replace")) for text in texts)
    seen = sum(_image_tokens(data) for data in images)
    return _TOKENS_PER_MESSAGE + math.ceil(num_bytes / _BYTES_PER_TOKEN) + seen


def _image_tokens(data: bytes) -> int:
    try:
        with Image.open(io.BytesIO(data)) as opened:
            width, height = opened.size
    except (OSError, ValueError, Image.DecompressionBombError):  # the server refuses it, or not
        return _USUAL_IMAGE_TOKENS
    return math.ceil(width / _PX_PER_TOKEN) * math.ceil(height / _PX_PER_TOKEN)
