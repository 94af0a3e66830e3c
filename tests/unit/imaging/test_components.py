"""Features as images."""

import numpy as np
import pytest
import torch

from blip3o.imaging.pixels import component_images


def clusters() -> torch.Tensor:
    """16 tokens of three kinds along three directions, [1, 16, 8]."""
    generator = torch.Generator().manual_seed(0)
    centers = 5 * torch.eye(8)[:3]
    kinds = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 2, 2, 0, 1, 2, 0])
    return (centers[kinds] + 0.01 * torch.randn(16, 8, generator=generator))[None]


def test_tokens_that_are_alike_have_one_color() -> None:
    (image,) = component_images(clusters(), 40)
    assert image.size == (40, 40)
    colors = np.asarray(image)[5::10, 5::10].reshape(16, 3).astype(int)
    assert np.abs(colors[0] - colors[1]).max() < 20
    assert np.abs(colors[0] - colors[2]).max() > 60
    assert np.abs(colors[0] - colors[8]).max() > 60


def test_moments_share_their_colors() -> None:
    first, second = component_images(torch.cat([clusters(), clusters()]), 8)
    assert first.tobytes() == second.tobytes()
    faded, full = component_images(torch.cat([0.5 * clusters(), clusters()]), 8)
    assert np.ptp(np.asarray(faded)) < np.ptp(np.asarray(full))


@pytest.mark.parametrize("shape", [(2, 15, 8), (2, 1, 8), (2, 16, 2), (16, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="features must be"):
        component_images(torch.zeros(shape), 8)
