"""How near an image is to another one, pixel by pixel and by structure."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

_LEVELS = 255.0
LEAST_PX = 11
"""Smallest side of an image for `ssim`: that of a window."""

_WINDOW, _WINDOW_STD = LEAST_PX, 1.5
_K_1, _K_2 = 0.01, 0.03


def psnr(image: Image.Image, other: Image.Image) -> float:
    """Returns the peak signal-to-noise ratio of two RGB images in dB; infinity for equal images.

    It is 10 log10(255^2 / mean squared error of the 8-bit levels of all channels).

    Args:
        image: an RGB image.
        other: an RGB image of the same size.
    """
    error = (_levels(image) - _levels(other)).square().mean()
    return float(10 * torch.log10(_LEVELS**2 / error))


def ssim(image: Image.Image, other: Image.Image) -> float:
    """Returns the structural similarity of two RGB images, at most 1.

    The variant: Gaussian windows of 11 x 11 with a standard deviation of 1.5, weighted (biased)
    covariances, K 0.01 and 0.03 on 255 levels; windows inside the image only; the mean over them
    and the three channels. Box windows give results that differ by 0.01 to 0.03.

    Args:
        image: an RGB image of 11 or more pixels along each side.
        other: an RGB image of the same size.

    Raises:
        ValueError: if the images are smaller than a window.

    Reference:
        Wang et al., "Image quality assessment: from error visibility to structural similarity"
        (2004); checked against scikit-image's `structural_similarity`.
    """
    if min(image.size) < _WINDOW:
        raise ValueError(f"SSIM needs {_WINDOW} pixels along each side, got {image.size}")
    x, y = _levels(image), _levels(other)
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x = _blurred(x * x) - mean_x.square()
    variance_y = _blurred(y * y) - mean_y.square()
    covariance = _blurred(x * y) - mean_x * mean_y
    c_1, c_2 = (_K_1 * _LEVELS) ** 2, (_K_2 * _LEVELS) ** 2
    likeness = (2 * mean_x * mean_y + c_1) * (2 * covariance + c_2)
    scale = (mean_x.square() + mean_y.square() + c_1) * (variance_x + variance_y + c_2)
    return float((likeness / scale).mean())


def _levels(image: Image.Image) -> Tensor:
    """Returns the levels of an RGB image, float64 [3, 1, H, W]."""
    return torch.from_numpy(np.array(image, dtype=np.float64)).movedim(-1, 0)[:, None]


def _blurred(values: Tensor) -> Tensor:
    """Returns the weighted means of all windows inside [3, 1, H, W]."""
    offsets = torch.arange(_WINDOW, dtype=values.dtype) - _WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * _WINDOW_STD**2))
    weights = weights / weights.sum()
    rows = functional.conv2d(values, weights.reshape(1, 1, -1, 1))
    return functional.conv2d(rows, weights.reshape(1, 1, 1, -1))
