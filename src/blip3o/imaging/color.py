"""Applies the color profile of a PIL image: converts its colors to sRGB, as a viewer shows them.

An embedded profile has priority over the PNG chunk `sRGB`, and `sRGB` over `gAMA` with `cHRM`, like
in a browser. A profile that is damaged, or that belongs to another color space, is ignored.
"""

import functools
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from blip3o.imaging.profiles import numbered_profile

if TYPE_CHECKING:
    from PIL.ImageCms import ImageCmsTransform

COLOR_KEYS = ("icc_profile", "gamma", "chromaticity", "srgb")
"""Keys in Pillow's `info` that describe the colors of an image."""
_SPACES = {"RGB ": ("RGB",), "GRAY": ("L",), "CMYK": ("CMYK",), "Lab ": ("LAB",)}
_CLASSES = ("mntr", "scnr", "prtr", "spac")
_MOST_PROFILE_BYTES = 1 << 22
_SAME_LEVELS = 2
"""A profile within this many levels of sRGB counts as sRGB with rounded numbers."""


def profile_of(image: Image.Image) -> bytes | None:
    """Returns the embedded color profile of an image, or one made from its gamma and primaries.

    Args:
        image: an image as Pillow opened it; its `info` is read.
    """
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes) and profile:
        return profile
    gamma, points = image.info.get("gamma"), image.info.get("chromaticity")
    if "srgb" in image.info or not isinstance(gamma, float):
        return None
    return numbered_profile(gamma, points if isinstance(points, tuple) else None)


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Returns an image in sRGB.

    Args:
        image: L, RGB, CMYK or LAB, without transparency.
        profile: an ICC profile from an untrusted file.

    Returns:
        An RGB image, or the same image if the profile is sRGB, damaged, for another color space or
        larger than 4 MiB.
    """
    transform = None
    if len(profile) <= _MOST_PROFILE_BYTES:
        transform = _transform(profile, image.mode)
    if transform is None:
        return image
    result = transform.apply(image)
    result.info.clear()
    return result


@functools.lru_cache(maxsize=16)
def _transform(data: bytes, mode: str) -> "ImageCmsTransform | None":
    """Returns the transform of a profile to sRGB; None if the profile is useless or sRGB itself."""
    try:
        from PIL import ImageCms

        source = ImageCms.ImageCmsProfile(io.BytesIO(data))
        core = source.profile
        if mode not in _SPACES.get(core.xcolor_space, ()) or core.device_class not in _CLASSES:
            return None
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.PERCEPTUAL
        )
        return None if _changes_nothing(transform, mode) else transform
    except Exception:  # noqa: BLE001  (a damaged profile, or a Pillow without color management)
        return None


def _changes_nothing(transform: "ImageCmsTransform", mode: str) -> bool:
    if mode not in {"L", "RGB"}:
        return False
    levels = np.arange(0, 256, 1 if mode == "L" else 17, dtype=np.uint8)
    if mode == "L":
        grid = levels[None]
    else:
        grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    seen = np.asarray(transform.apply(Image.fromarray(grid))).astype(int)
    plain = np.asarray(Image.fromarray(grid).convert("RGB")).astype(int)
    return bool(np.abs(seen - plain).max() <= _SAME_LEVELS)
