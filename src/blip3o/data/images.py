"""Decodes the images of a record."""

from collections.abc import Mapping

from PIL import Image
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.imaging.load import open_image
from blip3o.imaging.pixels import to_pixels


def read_pixels(files: Mapping[str, bytes], role: str, image_px: int) -> Tensor:
    """Returns the image of a role, stretched to [3, P, P], float32 in [-1, 1].

    Raises:
        ValueError: if the record has no such image or the image cannot be read.
    """
    return to_pixels(read_image(files, role), image_px)


def read_image(files: Mapping[str, bytes], role: str) -> Image.Image:
    """Returns the image of a role as RGB; raises the same errors as `read_pixels`."""
    if role not in files:
        raise ValueError(f"the record has no image {role!r}")
    try:
        return open_image(files[role])
    except UsageError as error:
        raise ValueError(str(error)) from error
