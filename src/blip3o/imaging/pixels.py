"""Images as tensors and back. Pixel tensors are float32 in [-1, 1], channels first."""

from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blip3o.core.errors import NotFiniteError

FitMode = Literal["stretch", "center_crop", "pad"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of red, green and blue in [0, 1] that CLIP models were trained with.

published: OpenAI's CLIP, EVA-CLIP and Qwen2.5-VL share them.
"""

_MOST_ASPECT = 16
"""A thinner image is cut to this aspect ratio first, or its long edge would need gigabytes."""

_MOST_REDUCTION = 256.0
"""Factor of a reduction that the bicubic filter does itself; boxes of whole pixels do the rest."""


def to_pixels(image: Image.Image, px: int, mode: FitMode = "stretch") -> Tensor:
    """Returns a square tensor [3, px, px], float32 in [-1, 1], of an RGB image.

    Args:
        image: RGB, of any size.
        px: side of the result; an image that has it already is not resampled.
        mode: how another shape becomes a square: "stretch" (all of it, bent), "center_crop" (its
            middle) or "pad" (all of it, white beside it). Resampling is bicubic.

    Raises:
        ValueError: for an unknown mode or an image that is not RGB.

    Reference:
        The released models are trained with "center_crop" and given images by "stretch"; parity
        family `eva_clip` (`preprocess`).
    """
    if image.mode != "RGB":
        raise ValueError(f"an RGB image is needed, got {image.mode}; see imaging.load.to_rgb")
    values = np.asarray(_fit(image, px, mode), dtype=np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1).contiguous()


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
        ValueError: for another shape or values that are not numbers.
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


def _fit(image: Image.Image, px: int, mode: FitMode) -> Image.Image:
    size = (px, px)
    match mode:
        case "stretch":
            return resized(image, size)
        case "center_crop":
            longest = _MOST_ASPECT * min(image.size)
            image = _crop(image, min(image.width, longest), min(image.height, longest))
            short = min(image.size)
            # Resampled before it is cropped: the released code does, and the edges see what lies
            # outside the crop.
            width, height = (px * side // short for side in image.size)
            return _crop(resized(image, (width, height)), px, px)
        case "pad":
            return _pad(image, px)
    raise ValueError(f"unknown mode {mode!r}; use stretch, center_crop or pad")


def _pad(image: Image.Image, px: int) -> Image.Image:
    """Returns all of an image in the middle of a white square; a line keeps a pixel's width."""
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
        image: of any size. Where a side shrinks to less than a 512th, it is averaged in boxes
            first: the weights of the filter would take 32 bytes for each pixel of that side.
        size: width and height in pixels.
    """
    if image.size == size:
        return image
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=_MOST_REDUCTION)


def _crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """Returns the middle of an image; half a pixel is rounded to the even side."""
    if image.size == (width, height):
        return image
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
