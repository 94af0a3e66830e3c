"""Converts decoded PIL images of any mode to upright 8-bit sRGB on white."""

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from blip3o.core.errors import UsageError
from blip3o.imaging.color import COLOR_KEYS, profile_of, to_srgb
from blip3o.imaging.metadata import read_exif
from blip3o.imaging.profiles import adobe_rgb
from blip3o.imaging.tiff_deep import scale_of

TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that makes an image of each EXIF orientation upright."""

_ORIENTED = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
"""Keys of Pillow's `info` that may hold an orientation."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns a PIL image as 8-bit sRGB, with transparent parts on white.

    Args:
        image: an image of any mode; its color profile is applied unless it is damaged. Grey of more
            than 8 bits is scaled from the range that its TIFF file states, or from 0..65535.

    Raises:
        UsageError: if its numbers are not colors, for example floating point numbers.
    """
    image.load()  # some metadata follows the image
    profile = _profile(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return _plain(image if profile is None else to_srgb(image, profile))
    if image.mode == "F":
        raise UsageError("an image of floating point numbers; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _from_deep_grey(image)
    alpha = None
    if image.has_transparency_data:
        is_grey = image.mode in {"1", "L", "LA", "La"}
        image = image.convert("LA" if is_grey else "RGBA")
        alpha = image.getchannel("A")
    if image.mode not in {"L", "RGB", "CMYK", "LAB"}:
        image = image.convert("L" if image.mode in {"1", "LA"} else "RGB")
    if profile is not None:
        image = to_srgb(image, profile)
    color = image.convert("RGB")
    if alpha is not None:
        color.putalpha(alpha)
        white = Image.new("RGBA", color.size, (255, 255, 255, 255))
        color = Image.alpha_composite(white, color).convert("RGB")
    return _plain(color)


def _plain(image: Image.Image) -> Image.Image:
    """Returns an image without color metadata, which must not be applied twice."""
    if not any(key in image.info for key in COLOR_KEYS):
        return image
    image = image.copy()  # the caller's image stays unchanged
    for key in COLOR_KEYS:
        image.info.pop(key, None)
    return image


def _profile(image: Image.Image) -> bytes | None:
    profile = profile_of(image)
    exif = image.info.get("exif")
    if profile is None and isinstance(exif, bytes) and read_exif(exif)[1]:
        return adobe_rgb()
    return profile


def upright(image: Image.Image) -> Image.Image:
    """Returns an image turned upright by its EXIF orientation; unreadable EXIF is ignored.

    Args:
        image: an image of any mode. The result has no orientation left.

    Raises:
        OSError: if its file is damaged or truncated; decoders may raise other errors as well.
    """
    image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001  (an image with damaged EXIF is still accepted)
        return image
    method = TRANSPOSE.get(orientation) if isinstance(orientation, int) else None
    if method is None:
        return image
    turned = image.transpose(method)
    # Pillow keeps the orientation, and a second reading would turn the image again.
    for key in _ORIENTED:
        turned.info.pop(key, None)
    return turned


def _numbers(value: object) -> list[float]:
    """Returns the numbers that Pillow's directory of a TIFF file holds for a tag."""
    values = value if isinstance(value, tuple) else (value,)
    return [float(one) for one in values if isinstance(one, int | float)]


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Returns a grey image of more than 8 bits as L, or as LA if one level is transparent."""
    values = np.asarray(image).astype(np.int64)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        scale = scale_of(lambda tag: _numbers(image.tag_v2.get(tag, ())))
        grey = scale.levels(values if scale.is_signed else values & (1 << scale.bits) - 1)
    elif values.min() < 0 or values.max() > 65535:
        raise UsageError("an image of 32-bit numbers; save it with 8 or 16 bits")
    else:
        grey = ((values + 128) // 257).astype(np.uint8)
    result = Image.fromarray(grey)
    if isinstance(level := image.info.get("transparency"), int):
        result.putalpha(Image.fromarray(np.where(values == level, 0, 255).astype(np.uint8)))
    return result
