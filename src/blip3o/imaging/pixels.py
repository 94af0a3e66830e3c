"""Converts images to pixel tensors, float32 in [-1, 1] with channels first, and back."""

import math
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blip3o.core.errors import NotFiniteError

FitMode = Literal["stretch", "center_crop", "pad"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of red, green and blue in [0, 1] for which CLIP models were trained.

published: OpenAI's CLIP, EVA-CLIP and Qwen2.5-VL share them.
"""

_MOST_ASPECT = 16
"""Thinner images are cropped to this aspect ratio before "center_crop": resampling their long side
would need gigabytes."""

_MOST_REDUCTION = 256.0
"""Largest reduction by the bicubic filter alone; beyond it, boxes of whole pixels come first."""

_CUT = 0.02
"""Share of the values that is clipped at each end of a color, so that outliers do not dominate."""


def to_pixels(image: Image.Image, px: int, mode: FitMode = "stretch") -> Tensor:
    """Returns an RGB image as a square tensor [3, px, px], float32 in [-1, 1].

    Args:
        image: an RGB image of any size.
        px: side of the result; an image of this size is not resampled.
        mode: conversion of other shapes to a square: "stretch" (distorts the image), "center_crop"
            (keeps its middle) or "pad" (adds white borders). Resampling is bicubic.

    Raises:
        ValueError: for an unknown mode or an image that is not RGB.

    Reference:
        The released models were trained with "center_crop" and are used with "stretch"; parity
        family `eva_clip` (`preprocess`).
    """
    if image.mode != "RGB":
        raise ValueError(f"an RGB image is needed, got {image.mode}; see imaging.load.to_rgb")
    values = np.asarray(_fit(image, px, mode), dtype=np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1).contiguous()


def resized_pixels(pixels: Tensor, height: int, width: int) -> Tensor:
    """Returns images of another size; images of that size are returned unchanged.

    Args:
        pixels: [M, 3, H, W].
        height: new H.
        width: new W.
    """
    if pixels.shape[2:] == (height, width):
        return pixels
    # In fp32: on the CPU, torch cannot resample half-precision tensors this way.
    return torch.nn.functional.interpolate(
        pixels.float(), (height, width), mode="bilinear", antialias=True
    ).to(pixels)


def normalize_for_clip(pixels: Tensor) -> Tensor:
    """Returns pixels scaled to the mean and standard deviation that CLIP models expect.

    Args:
        pixels: [..., 3, H, W] in [-1, 1].

    Returns:
        (pixels in [0, 1] - CLIP_MEAN) / CLIP_STD, same shape and type, computed in fp32.
    """
    mean, std = (
        torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD)
    )
    return (((pixels.float() + 1) / 2 - mean) / std).to(pixels.dtype)


def to_image(pixels: Tensor) -> Image.Image | list[Image.Image]:
    """Returns the image of a tensor, or the list of images of a batch.

    Args:
        pixels: [3, H, W] or [B, 3, H, W] in [-1, 1]; values outside are clipped.

    Raises:
        ValueError: for another shape.
        NotFiniteError: if pixels are NaN or infinite.
    """
    if pixels.ndim not in (3, 4) or pixels.shape[-3] != 3:
        raise ValueError(f"pixels must be [3, H, W] or [B, 3, H, W], got {tuple(pixels.shape)}")
    if not torch.isfinite(pixels).all():
        raise NotFiniteError("pixels hold values that are not numbers (NaN or infinity)")
    levels = (pixels.detach().float() + 1).mul(127.5).round().clamp(0, 255)
    arrays = levels.to(torch.uint8).movedim(-3, -1).contiguous().cpu().numpy()
    if arrays.ndim == 3:
        return Image.fromarray(arrays)
    return [Image.fromarray(array) for array in arrays]


def component_images(features: Tensor, px: int) -> list[Image.Image]:
    """Returns an image of each set of features: its three main components as red, green and blue.

    The components are those of all tokens of the last set, which has the least noise. Colors are
    scaled over all sets and therefore comparable.

    Args:
        features: S sets of features [S, N, K]; N is a square number of 4 or more, K is at least 3.
        px: side of the images.

    Raises:
        ValueError: if the shape is invalid.
    """
    shape = list(features.shape)
    if len(shape) != 3 or math.isqrt(shape[1]) ** 2 != shape[1] or shape[1] < 4 or shape[2] < 3:
        raise ValueError(f"features must be [S, N, K], N a square from 4, K from 3, got {shape}")
    values = features.float()
    last = values[-1] - values[-1].mean(0)
    directions = torch.linalg.svd(last, full_matrices=False).Vh[:3]
    # The sign of a direction is arbitrary: a positive largest weight makes the colors reproducible.
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    colors = (values - values[-1].mean(0)) @ (directions * largest.sign()).T
    flat = colors.flatten(0, 1)
    low, high = flat.quantile(_CUT, 0), flat.quantile(1 - _CUT, 0)
    # All three share a scale, so that a direction of little variance stays grey.
    scaled = (2 * colors - low - high) / (high - low).max().clamp(min=1e-8)
    pixels = scaled.transpose(1, 2).unflatten(2, (math.isqrt(shape[1]),) * 2)
    images = to_image(pixels)
    assert isinstance(images, list), "a batch gives a list"
    return [image.resize((px, px), Image.Resampling.NEAREST) for image in images]


def _fit(image: Image.Image, px: int, mode: FitMode) -> Image.Image:
    size = (px, px)
    match mode:
        case "stretch":
            return resized(image, size)
        case "center_crop":
            longest = _MOST_ASPECT * min(image.size)
            image = _crop(image, min(image.width, longest), min(image.height, longest))
            short = min(image.size)
            # Resampled before cropping, as in the released code: the filter at the edges of the
            # crop sees the pixels outside it.
            width, height = (px * side // short for side in image.size)
            return _crop(resized(image, (width, height)), px, px)
        case "pad":
            return _pad(image, px)
    raise ValueError(f"unknown mode {mode!r}; use stretch, center_crop or pad")


def _pad(image: Image.Image, px: int) -> Image.Image:
    """Returns an image centered in a white square; the short side keeps at least one pixel."""
    longest = max(image.size)
    width, height = (max(1, round(side / longest * px)) for side in image.size)
    square = Image.new("RGB", (px, px), (255, 255, 255))
    square.paste(
        resized(image, (width, height)), (round((px - width) / 2), round((px - height) / 2))
    )
    return square


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Returns an image of another width and height, resampled bicubically.

    Args:
        image: an image of any size. A side that shrinks to less than a 512th is averaged in boxes
            first, because the filter's weights take 32 bytes for each pixel of that side.
        size: width and height in pixels.
    """
    if image.size == size:
        return image
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=_MOST_REDUCTION)


def _crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """Returns the middle of an image; half a pixel of offset is rounded to even."""
    if image.size == (width, height):
        return image
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
