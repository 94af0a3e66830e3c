"""Decodes the images of a record."""

from collections.abc import Mapping

from PIL import Image
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.imaging.load import open_image
from blip3o.imaging.pixels import to_pixels


def read_pixels(files: Mapping[str, bytes], role: str, image_px: int) -> Tensor:
    """Returns one image of a record as pixels [3, P, P], float32 in [-1, 1].

    Args:
        files: the record's images by role.
        role: role of the image.
        image_px: side of the result; an image of another shape is stretched.

    Raises:
        ValueError: if the record has no such image or the image cannot be read.
    """
    return to_pixels(read_image(files, role), image_px)


def read_image(files: Mapping[str, bytes], role: str) -> Image.Image:
    """Returns one image of a record as RGB.

    Args:
        files: the record's images by role.
        role: role of the image.

    Raises:
        ValueError: if the record has no such image or the image cannot be read.
    """
    if role not in files:
        raise ValueError(f"the record has no image {role!r}")
    try:
        return open_image(files[role])
    except UsageError as error:
        raise ValueError(str(error)) from error
