"""Images on their way out: as PNG files, and the paths of those that URLs point to."""

import io
import secrets

from PIL import Image

IMAGE_PATH = "/v1/drawn/"
"""Where URLs of images point to; no key is asked for, because their names cannot be guessed."""


def png(image: Image.Image) -> bytes:
    """Returns an image as the bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def new_name() -> str:
    """Returns a name of a PNG file that cannot be guessed."""
    return f"{secrets.token_urlsafe(24)}.png"
