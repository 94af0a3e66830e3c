"""Encodes images as files in memory, without metadata."""

import io

from PIL import Image


def to_png(image: Image.Image, compress_level: int = 6) -> bytes:
    """Returns an image as a PNG file.

    Args:
        image: the image.
        compress_level: 0 to 9; a lower one is faster and gives a larger file.
    """
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=compress_level)
    return file.getvalue()


def to_jpeg(image: Image.Image, quality: int = 75) -> bytes:
    """Returns an image as a JPEG file.

    Args:
        image: the image.
        quality: 0 to 95; 75 is Pillow's own.
    """
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()
