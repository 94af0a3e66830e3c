"""Pooling of the token grid against recorded values (family `pooling`)."""

from typing import Any

import pytest
import torch

from blip3o.models.encoders.grid import pool_tokens

TOLERANCE = 1e-6


@pytest.mark.parity_cases("pooling/*.safetensors")
def test_pooled_tokens_equal_recorded_tokens(case: Any) -> None:
    recorded = case.tensors()
    names = [name.removesuffix("_input") for name in recorded if name.endswith("_input")]
    assert names
    for name in names:
        kernel = int(name.rpartition("_")[2])
        pooled = pool_tokens(recorded[f"{name}_input"], kernel)
        expected = recorded[f"{name}_output_as_tokens"]
        torch.testing.assert_close(pooled, expected, rtol=0, atol=TOLERANCE)
        grid = recorded[f"{name}_output"].flatten(2).transpose(1, 2)
        torch.testing.assert_close(pooled, grid, rtol=0, atol=TOLERANCE)
