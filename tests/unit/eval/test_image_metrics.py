"""Figures of images against those of other programs: PSNR, SSIM, LPIPS, features of Inception."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from blip3o.core.errors import UsageError
from blip3o.eval.measures.inception import FILE, Inception, load_inception
from blip3o.eval.measures.lpips import FILES, Lpips, load_lpips
from blip3o.eval.measures.similarity import psnr, ssim

RECORDED = Path(__file__).parents[2] / "data" / "metrics"


def rows(name: str) -> list[dict[str, Any]]:
    """Returns the recorded rows of a figure; their README has the formulas below."""
    return json.loads((RECORDED / f"{name}.json").read_text())["rows"]


def formula(width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    channels = [7 * x + 3 * y, x * x // 5 + 11 * y, 40 * (x // 9) + 90 * (y // 7)]
    return (np.stack(channels, axis=-1) % 256).astype(np.uint8)


def changed(levels: np.ndarray, change: str) -> np.ndarray:
    y, x = np.mgrid[: levels.shape[0], : levels.shape[1]]
    noise = ((37 * x + 91 * y) % 41 - 20)[..., None]
    return {
        "none": levels,
        "shift": np.roll(levels, 1, axis=1),
        "half": levels // 2,
        "invert": 255 - levels,
        "noise": np.clip(levels.astype(int) + noise, 0, 255).astype(np.uint8),
    }[change]


def pair(row: dict[str, Any]) -> tuple[Image.Image, Image.Image]:
    levels = formula(row["width"], row["height"])
    return Image.fromarray(levels), Image.fromarray(changed(levels, row["change"]))


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [0, 1) by the formula of the recordings."""
    raw = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    return ((raw >> np.uint64(11)).astype(np.float64) / 2**53).reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    middle = drawn(name, shape) - 0.5
    if len(shape) == 4:
        middle = middle * np.sqrt(24 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
        middle = 1 + middle
    else:
        middle = 0.5 * middle + name.endswith("bn.weight")
    return torch.from_numpy(middle).float()


def test_psnr_and_ssim_equal_recorded_ones() -> None:
    for row in rows("similarity"):
        before, after = pair(row)
        assert psnr(before, after) == pytest.approx(row["psnr"], abs=1e-6), row
        assert ssim(before, after) == pytest.approx(row["ssim"], abs=1e-6), row


def test_lpips_equals_recorded_ones(tmp_path: Path) -> None:
    """Weights are read from files of the published names and layout."""
    state = Lpips().state_dict()
    backbone = {
        name: weight(name, tuple(one.shape))
        for name, one in state.items()
        if name.startswith("features.")
    }
    backbone["classifier.6.bias"] = torch.zeros(1000)
    shapes = {f"lin{n}.model.1.weight": (1, len(state[f"weights.{n}"]), 1, 1) for n in range(5)}
    linear = {name: torch.from_numpy(0.1 * drawn(name, s)).float() for name, s in shapes.items()}
    for name, content in zip(FILES, (backbone, linear), strict=True):
        assert load_lpips(tmp_path) is None
        torch.save(content, tmp_path / name)
    network = load_lpips(tmp_path)
    assert network is not None
    for row in rows("lpips"):
        before, after = pair(row)
        assert network.compare([before, before], [after, before]) == pytest.approx(
            [row["lpips"], 0.0], abs=1e-5
        ), row


def test_inception_equals_recorded_features(tmp_path: Path) -> None:
    """Weights are read from a file of the published name and layout."""
    assert load_inception(tmp_path) is None
    state = {
        name: weight(name, tuple(one.shape))
        for name, one in Inception().state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert sum(one.numel() for one in state.values()) + 1008 * 2049 == 23_885_392
    classifier = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save(state | classifier, tmp_path / FILE)
    network = load_inception(tmp_path)
    assert network is not None
    recorded = load_file(RECORDED / "inception.safetensors")
    for row in rows("inception"):
        features = network.extract([pair(row)[1]])
        expected = recorded[row["features"]][None]
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-3)


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / FILE)
    with pytest.raises(UsageError, match="holds another network"):
        load_inception(tmp_path)
    torch.save({"features.0.bias": torch.zeros(64)}, tmp_path / FILES[0])
    torch.save({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, tmp_path / FILES[1])
    with pytest.raises(UsageError, match=r"it has no lin1\.model\.1\.weight"):
        load_lpips(tmp_path)
