"""Features as images: their three main directions as red, green and blue."""

import math

import torch
from PIL import Image
from torch import Tensor

from blip3o.imaging.pixels import to_image

_CUT = 0.02
"""Share of the values that is clipped at each end of a color: a few may not rule the rest."""


def component_images(features: Tensor, px: int) -> list[Image.Image]:
    """Returns an image of each set of features, all in the same colors.

    The directions are the principal components of all tokens of the last set, which is the
    clearest; colors are scaled over all sets.

    Args:
        features: [S, N, K] of S moments; N is a square number from 4, K is 3 or more.
        px: side of the images.

    Raises:
        ValueError: for another shape.
    """
    shape = list(features.shape)
    if len(shape) != 3 or math.isqrt(shape[1]) ** 2 != shape[1] or shape[1] < 4 or shape[2] < 3:
        raise ValueError(f"features must be [S, N, K], N a square from 4, K from 3, got {shape}")
    values = features.float()
    last = values[-1] - values[-1].mean(0)
    directions = torch.linalg.svd(last, full_matrices=False).Vh[:3]
    # A direction's sign means nothing: the largest weight is positive, so equal input looks equal.
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    colors = (values - values[-1].mean(0)) @ (directions * largest.sign()).T
    flat = colors.flatten(0, 1)
    low, high = flat.quantile(_CUT, 0), flat.quantile(1 - _CUT, 0)
    # One scale for all three: a direction in which little differs stays grey.
    scaled = (2 * colors - low - high) / (high - low).max().clamp(min=1e-8)
    pixels = scaled.transpose(1, 2).unflatten(2, (math.isqrt(shape[1]),) * 2)
    images = to_image(pixels)
    assert isinstance(images, list), "a batch was given"
    return [image.resize((px, px), Image.Resampling.NEAREST) for image in images]
