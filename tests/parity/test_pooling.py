"""Pooling of the token grid against recorded values (family `pooling`)."""

import math
import re
from typing import Any

import pytest
import torch

from blip3o.models.encoders.grid import pool_tokens

TOLERANCE = 1e-6


@pytest.mark.parity_cases("pooling/*.safetensors")
def test_pooled_tokens_equal_recorded_tokens(case: Any) -> None:
    """The window follows from the shapes and agrees with a recorded name of the pooling."""
    recorded = case.tensors()
    facts = json_of(case)
    names = [name.removesuffix("_input") for name in recorded if name.endswith("_input")]
    assert names
    for name in names:
        tokens, expected = recorded[f"{name}_input"], recorded[f"{name}_output_as_tokens"]
        kernel = math.isqrt(tokens.shape[1] // expected.shape[1])
        pooling = re.fullmatch(r".*_(\d+)", facts.get(name, {}).get("gen_pooling", name))
        assert pooling is None or int(pooling[1]) == kernel
        pooled = pool_tokens(tokens, kernel)
        torch.testing.assert_close(pooled, expected, rtol=0, atol=TOLERANCE)
        grid = recorded[f"{name}_output"].flatten(2).transpose(1, 2)
        torch.testing.assert_close(pooled, grid, rtol=0, atol=TOLERANCE)


def json_of(case: Any) -> dict[str, Any]:
    path = case.path.with_suffix(".json")
    return type(case)(path).settings() if path.exists() else {}
