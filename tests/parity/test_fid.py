"""The Frechet distance and the resampling of FID against recorded ones (`fid`)."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o.eval.frechet import frechet_distance
from blip3o.eval.inception import clean_levels

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
        assert abs(frechet_distance(first, first)) < 1e-4


@each_case
def test_resampling_equals_recorded_levels(case: Any) -> None:
    recorded = case.neighbor(f"{case.path.stem}.safetensors").tensors()
    rows = case.settings()["resize"]
    assert rows
    for number, row in enumerate(rows):
        levels = clean_levels(Image.fromarray(formula(row["width"], row["height"])))
        levels = levels.movedim(0, -1).contiguous()
        found = levels[::23, ::23]
        torch.testing.assert_close(found, recorded[f"{number}.clean"], rtol=0, atol=1e-3)
        # The recorded means are sums in single precision, row by row.
        means = levels.numpy().mean(axis=(0, 1)).tolist()
        assert means == pytest.approx(row["means"]["clean"], abs=1e-3)
