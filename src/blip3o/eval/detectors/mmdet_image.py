"""The input pipeline of mmdetection's test configs: resize, pad, normalize.

The resize has to be that of OpenCV. Pillow widens its filter when it reduces an image, and at 1024
to 800 pixels its levels differ by up to 63.
"""

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from blip3o.imaging.rgb import upright

_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_STD = np.array([58.395, 57.12, 57.375])
_PAD_LEVEL = 128
_DIVISOR = 32
_BITS = 11
"""Bits of the fraction in OpenCV's weights."""


@dataclasses.dataclass(frozen=True)
class PreparedImage:
    """An image as the network takes it.

    Args:
        pixels: normalized pixels with the padding, float32 [3, H, W]; H and W are multiples of 32.
        inner: height and width without the padding.
        original: height and width of the image.
    """

    pixels: Tensor
    inner: tuple[int, int]
    original: tuple[int, int]


def prepare(image: Image.Image, longest: int, shortest: int) -> PreparedImage:
    """Returns an image as the network takes it.

    The image is turned upright, scaled to the largest size within the limits, padded at the right
    and at the bottom with grey (before the normalization), and normalized.

    Args:
        image: any image; an alpha channel is dropped, as OpenCV's reader does.
        longest: limit of the longer side in pixels.
        shortest: limit of the shorter side in pixels.

    Reference:
        mmdetection 2.28.2; parity family `mask2former` (`preprocess`).
    """
    levels = np.asarray(upright(image).convert("RGB"))
    height, width = levels.shape[:2]
    scale = min(longest / max(height, width), shortest / min(height, width))
    inner = int(height * scale + 0.5), int(width * scale + 0.5)
    padded = np.full(
        (*(-(-side // _DIVISOR) * _DIVISOR for side in inner), 3), _PAD_LEVEL, np.uint8
    )
    padded[: inner[0], : inner[1]] = resize_bilinear(levels, inner)
    pixels = (padded - _MEAN) * (1 / _STD).astype(np.float32)
    return PreparedImage(
        torch.from_numpy(pixels).movedim(-1, 0).contiguous(), inner, (height, width)
    )


def resize_bilinear(levels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Returns an image in another size, as OpenCV's bilinear resize of bytes gives it.

    Pixel centers are at one half. The filter does not widen with the reduction. Weights have 11
    bits of fraction, and the vertical pass drops 4 bits of the sums before it multiplies.

    Args:
        levels: uint8 [H, W, C].
        size: height and width of the result in pixels.
    """
    if levels.shape[:2] == size:
        return levels
    above, below, share_above, share_below = _neighbors(levels.shape[0], size[0])
    left, right, share_left, share_right = _neighbors(levels.shape[1], size[1])
    wide = levels.astype(np.int32)
    sums = wide[:, left] * share_left[:, None] + wide[:, right] * share_right[:, None]
    sums >>= 4
    upper = sums[above] * share_above[:, None, None] >> 16
    lower = sums[below] * share_below[:, None, None] >> 16
    return ((upper + lower + 2) >> 2).astype(np.uint8)


def _neighbors(
    before: int, after: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32], NDArray[np.int32]]:
    """Returns the two pixels that each new pixel lies between, and their weights in 1 / 2048."""
    step = 1.0 / (after / before)
    place = ((np.arange(after) + 0.5) * step - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.intp)
    share = place - first.astype(np.float32)
    one = np.float32(1 << _BITS)
    weights = [np.rint(part * one).astype(np.int32) for part in (np.float32(1) - share, share)]
    return first.clip(0, before - 1), (first + 1).clip(0, before - 1), weights[0], weights[1]
