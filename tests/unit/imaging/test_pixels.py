"""Images as tensors and back; features as images."""

import re
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o.imaging.pixels import (
    FitMode,
    component_images,
    normalize_for_clip,
    resized,
    to_image,
    to_pixels,
)


def _noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_an_image_of_the_right_size_survives_exactly() -> None:
    image = _noise(16, 16)
    pixels = to_pixels(image, 16)
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == torch.float32
    back = to_image(pixels)
    assert isinstance(back, Image.Image)
    assert np.array_equal(np.asarray(back), np.asarray(image))


def test_black_and_white_are_minus_one_and_one() -> None:
    assert to_pixels(Image.new("RGB", (3, 5), (0, 0, 0)), 4).unique().tolist() == [-1.0]
    assert to_pixels(Image.new("RGB", (3, 5), (255, 255, 255)), 4).unique().tolist() == [1.0]


def test_the_modes_keep_different_parts() -> None:
    values = np.zeros((10, 30, 3), np.uint8)
    values[:, 10:20] = (0, 255, 0)  # black, green, black
    image = Image.fromarray(values)
    green = to_pixels(image, 10, "center_crop")
    assert green[1].min() == 1.0
    stretched = to_pixels(image, 30, "stretch")
    assert stretched[1, :, 15].min() == 1.0
    assert stretched[1, :, 2].max() == -1.0
    padded = to_pixels(image, 30, "pad")
    assert padded[:, 0].min() == 1.0
    assert padded[0, 15, 15] == -1.0


@pytest.mark.parametrize("mode", ["stretch", "center_crop", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (7, 3)])
def test_extreme_shapes_become_squares(mode: FitMode, size: tuple[int, int]) -> None:
    assert to_pixels(_noise(*size), 8, mode).shape == (3, 8, 8)


def test_a_crop_resamples_the_short_edge_to_the_size_and_cuts_whole_pixels() -> None:
    image = _noise(31, 16)  # of the right height, so nothing is resampled
    cut = to_pixels(image, 16, "center_crop")
    whole = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
    assert torch.equal(cut, whole[:, :, 8:24])  # an offset of 7.5 pixels is rounded to even
    tall = _noise(20, 50)
    resized = tall.resize((8, 20), Image.Resampling.BICUBIC)
    assert torch.equal(to_pixels(tall, 8, "center_crop"), to_pixels(resized.crop((0, 6, 8, 14)), 8))


def test_normalizing_for_clip_removes_its_mean_and_deviation() -> None:
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    share = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    normalized = normalize_for_clip(share * 2 - 1)
    torch.testing.assert_close(normalized, (share - mean) / std, rtol=0, atol=1e-6)
    assert normalize_for_clip(share.bfloat16()).dtype == torch.bfloat16


def test_a_batch_becomes_a_list_and_values_are_clipped() -> None:
    pixels = torch.full((2, 3, 4, 6), 3.0)
    images = to_image(pixels.to(torch.bfloat16))
    assert isinstance(images, list)
    assert [i.size for i in images] == [(6, 4), (6, 4)]
    assert images[1].getpixel((0, 0)) == (255, 255, 255)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="RGB"):
        to_pixels(Image.new("L", (4, 4)), 4)
    with pytest.raises(ValueError, match="mode"):
        to_pixels(_noise(4, 4), 8, cast(FitMode, "squash"))
    with pytest.raises(ValueError, match=r"\[3, H, W\]"):
        to_image(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="NaN"):
        to_image(torch.full((3, 4, 4), float("nan")))


def _peak_kilobytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("mode", ["stretch", "center_crop", "pad"])
@pytest.mark.parametrize("size", [(3_000_000, 1), (1, 3_000_000)])
def test_no_shape_takes_much_memory_for_weights(mode: FitMode, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (200, 30, 30))
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError:
        pytest.skip("this system tells no peak of memory")
    before = _peak_kilobytes()
    pixels = to_pixels(image, 96, mode)
    assert _peak_kilobytes() - before < 40_000
    assert pixels.shape == (3, 96, 96)


def test_common_sizes_are_resampled_without_boxes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 20_000, 3), np.uint8)
    image = Image.fromarray(noise)
    plain = np.asarray(image.resize((96, 96), Image.Resampling.BICUBIC))
    assert np.array_equal(np.asarray(resized(image, (96, 96))), plain)


def clusters() -> torch.Tensor:
    """Returns 16 tokens of three kinds along three directions, [1, 16, 8]."""
    generator = torch.Generator().manual_seed(0)
    centers = 5 * torch.eye(8)[:3]
    kinds = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 2, 2, 0, 1, 2, 0])
    return (centers[kinds] + 0.01 * torch.randn(16, 8, generator=generator))[None]


def test_similar_tokens_have_one_color() -> None:
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
def test_features_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="features must be"):
        component_images(torch.zeros(shape), 8)
