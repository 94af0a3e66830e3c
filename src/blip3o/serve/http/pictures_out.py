"""Pictures on their way out: as PNG, and for a while on a shelf where URLs point."""

import io
import secrets
import threading
from collections import OrderedDict

from PIL import Image

PICTURE_PATH = "/v1/pictures/"
"""Where URLs of pictures point to; no key is asked for, as their names cannot be guessed."""

_MOST_BYTES = 64_000_000


def png(image: Image.Image) -> bytes:
    """Returns a picture as the bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class PictureShelf:
    """The latest pictures that were asked for as URLs; names cannot be guessed.

    Args:
        max_bytes: the oldest pictures make room for new ones beyond this.
    """

    def __init__(self, max_bytes: int = _MOST_BYTES) -> None:
        self._max_bytes = max_bytes
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def put(self, data: bytes) -> str:
        """Keeps a file and returns its name."""
        name = f"{secrets.token_urlsafe(24)}.png"
        with self._lock:
            self._files[name] = data
            self._size += len(data)
            while self._size > self._max_bytes and len(self._files) > 1:
                self._size -= len(self._files.popitem(last=False)[1])
        return name

    def get(self, name: str) -> bytes | None:
        """Returns the file of a name, or None if it is not there any more."""
        return self._files.get(name)
