"""Fits images to a vision tower: as squares, or in their own shape in whole tokens."""

import dataclasses
import math
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.imaging.pixels import resized

_MOST_ASPECT = 200
"""Largest aspect ratio, as published; images above it are refused."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFitConfig:
    """Conversion of an image to the input of a vision tower.

    Args:
        mode: "stretch", "center_crop" or "pad" give a square (see `pixels.to_pixels`); "aspect"
            keeps the image's shape, for towers that accept any shape.
        min_pixels: with "aspect", smaller images are enlarged to this area. published: 200,704
            (256 tokens) in the evaluation of understanding; the processor's default is 3,136.
        max_pixels: with "aspect", larger images are reduced to this area. published: 1,605,632
            (2048 tokens) in the same evaluation; the processor's default is 12,845,056.

    Raises:
        ValueError: unless 1 <= min_pixels <= max_pixels.
    """

    mode: Literal["stretch", "center_crop", "pad", "aspect"] = "stretch"
    min_pixels: int = 200_704
    max_pixels: int = 1_605_632

    def __post_init__(self) -> None:
        if not 1 <= self.min_pixels <= self.max_pixels:
            raise ValueError(
                f"min_pixels {self.min_pixels} must be 1 to max_pixels ({self.max_pixels})"
            )


def aspect_pixels(image: Image.Image, token_px: int, config: ImageFitConfig) -> Tensor:
    """Returns an image in its own shape as pixels [3, H, W], float32 in [-1, 1].

    Args:
        image: an RGB image of any size; resampled bicubically.
        token_px: side of a token of the tower in pixels; H and W are multiples of it.
        config: the smallest and largest area.

    Raises:
        UsageError: if one side is more than 200 times the other.
    """
    size = keep_aspect(image.size, token_px, config.min_pixels, config.max_pixels)
    values = np.asarray(resized(image, size), dtype=np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1).contiguous()


def keep_aspect(
    size: tuple[int, int], token_px: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Returns the width and height, in multiples of a token, that best keep an image's shape.

    Args:
        size: width and height of the image.
        token_px: side of a token in pixels.
        min_pixels: smallest width x height of the result.
        max_pixels: largest width x height of the result.

    Raises:
        UsageError: if one side is more than 200 times the other.

    Reference:
        Qwen2.5-VL (arXiv 2502.13923), section 2.1; parity family `chat`.
    """
    if max(size) > _MOST_ASPECT * min(size):
        raise UsageError(
            f"an image of {size[0]} x {size[1]} is too thin; crop it to at most {_MOST_ASPECT}:1"
        )
    area = size[0] * size[1]
    rounded = [max(1, round(one / token_px)) for one in size]
    pixels = rounded[0] * rounded[1] * token_px**2
    if pixels > max_pixels:
        shrink = math.sqrt(area / max_pixels)
        rounded = [max(1, math.floor(one / shrink / token_px)) for one in size]
    elif pixels < min_pixels:
        grow = math.sqrt(min_pixels / area)
        rounded = [math.ceil(one * grow / token_px) for one in size]
    return rounded[0] * token_px, rounded[1] * token_px
