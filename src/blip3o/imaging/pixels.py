"""Pictures as tensors and back. Pixel tensors are float32 in [-1, 1], channels first."""

from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

FitMode = Literal["stretch", "center_crop", "pad"]


def to_pixels(image: Image.Image, px: int, mode: FitMode = "stretch") -> Tensor:
    """Returns a square tensor [3, px, px], float32 in [-1, 1], of an RGB picture.

    Args:
        image: RGB, of any size.
        px: side of the result; a picture that has it already is not resampled.
        mode: how another shape becomes a square: "stretch" (all of it, bent), "center_crop" (its
            middle) or "pad" (all of it, white beside it). Resampling is bicubic.

    Raises:
        ValueError: for an unknown mode or a picture that is not RGB.
    """
    if image.mode != "RGB":
        raise ValueError(f"an RGB picture is needed, got {image.mode}; see imaging.load.to_rgb")
    values = np.asarray(_fit(image, px, mode), dtype=np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1).contiguous()


def to_image(pixels: Tensor) -> Image.Image | list[Image.Image]:
    """Returns the picture of a tensor, or the list of pictures of a batch.

    Args:
        pixels: [3, H, W] or [B, 3, H, W] in [-1, 1]; values outside are clipped.

    Raises:
        ValueError: for another shape or values that are not numbers.
    """
    if pixels.ndim not in (3, 4) or pixels.shape[-3] != 3:
        raise ValueError(f"pixels must be [3, H, W] or [B, 3, H, W], got {tuple(pixels.shape)}")
    if not torch.isfinite(pixels).all():
        raise ValueError("pixels hold values that are not numbers (NaN or infinity)")
    levels = (pixels.detach().float() + 1).mul(127.5).round().clamp(0, 255)
    arrays = levels.to(torch.uint8).movedim(-3, -1).contiguous().cpu().numpy()
    if arrays.ndim == 3:
        return Image.fromarray(arrays)
    return [Image.fromarray(array) for array in arrays]


def _fit(image: Image.Image, px: int, mode: FitMode) -> Image.Image:
    size = (px, px)
    width, height = image.size
    match mode:
        case "stretch":
            return _resize(image, size, (0, 0, width, height))
        case "center_crop":
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            # Cropping inside the resize never makes a large picture of a very thin one.
            return _resize(image, size, (left, top, left + side, top + side))
        case "pad":
            return ImageOps.pad(image, size, Image.Resampling.BICUBIC, color=(255, 255, 255))
    raise ValueError(f"unknown mode {mode!r}; use stretch, center_crop or pad")


def _resize(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]
) -> Image.Image:
    if image.size == size:
        return image
    return image.resize(size, Image.Resampling.BICUBIC, box=box)
