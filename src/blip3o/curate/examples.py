"""A usual text and a usual image, whose requests an estimate counts."""

import functools

from PIL import Image

from blip3o.imaging.encode import to_png
from blip3o.remote.chat import ChatImage

EXAMPLE_TEXT = "a sentence of the usual length of a prompt, with two or three details " * 3
_PX = 1024


@functools.cache
def example_image() -> ChatImage:
    """Returns an image of the usual size."""
    return ChatImage(to_png(Image.new("RGB", (_PX, _PX))))
