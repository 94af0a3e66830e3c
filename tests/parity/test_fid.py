"""The Frechet distance and the resampling of FID against recorded ones (`fid`)."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o.eval.measures.frechet import frechet_distance
from blip3o.eval.measures.inception import RESIZES

each_case = pytest.mark.parity_cases("fid/*.json")


def formula(width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    channels = [7 * x + 3 * y, x * x // 5 + 11 * y, 40 * (x // 9) + 90 * (y // 7)]
    return (np.stack(channels, axis=-1) % 256).astype(np.uint8)


@each_case
def test_distances_equal_recorded_ones(case: Any) -> None:
    recorded = case.neighbor(f"{case.path.stem}.safetensors").tensors()
    rows = case.settings()["distance"]
    assert rows
    for number, row in enumerate(rows):
        first, second = recorded[f"d{number}.a"], recorded[f"d{number}.b"]
        tolerance = 1e-6 if min(len(first), len(second)) > first.shape[1] else 1e-4
        for name in ("expected_eigenvalues", "expected_sqrtm"):
            assert frechet_distance(first, second) == pytest.approx(row[name], rel=tolerance)
        assert abs(frechet_distance(first, first) - row["same_set"]) < 1e-4


@each_case
def test_resampling_equals_recorded_levels(case: Any) -> None:
    recorded = case.neighbor(f"{case.path.stem}.safetensors").tensors()
    rows = case.settings()["resize"]
    assert rows
    for number, row in enumerate(rows):
        image = Image.fromarray(formula(row["width"], row["height"]))
        assert row["means"].keys() == RESIZES.keys()
        for mode, resize in RESIZES.items():
            levels = resize(image).contiguous().movedim(0, -1)
            expected = recorded[f"{number}.{mode}"]
            torch.testing.assert_close(levels[::23, ::23], expected, rtol=0, atol=1e-3)
            # The recorded means are single-precision sums in the order of the memory, and some
            # programs keep the channels first, others last.
            means = [one.numpy().mean(axis=(0, 1)) for one in (levels, levels.contiguous())]
            expected_means = np.array(row["means"][mode])
            errors = [np.abs(one - expected_means).max() for one in means]
            assert min(errors) < 1e-3, mode
