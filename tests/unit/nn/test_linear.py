"""The result for a row of a linear layer does not depend on the number of rows."""

import pytest
import torch
from torch import nn

from blip3o.nn.linear import VectorLinear

SHAPES = [(1, 6), (3, 6), (1, 2, 6), (3, 1, 6)]


def layer() -> VectorLinear:
    torch.manual_seed(0)
    return VectorLinear(6, 5)


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_few_rows_are_computed_as_rows_of_more(shape: tuple[int, ...]) -> None:
    linear, vectors = layer(), torch.randn(shape)
    rows = vectors.reshape(-1, 6)
    more = torch.cat([rows, torch.zeros(4 - len(rows), 6)])
    whole = nn.functional.linear(more, linear.weight, linear.bias)
    assert torch.equal(linear(vectors), whole[: len(rows)].reshape(*shape[:-1], 5))


@pytest.mark.parametrize("shape", [*SHAPES, (4, 6), (2, 5, 6), (0, 6)])
@pytest.mark.parametrize("is_training", [False, True])
def test_results_are_those_of_a_linear_layer(shape: tuple[int, ...], is_training: bool) -> None:
    linear, vectors = layer(), torch.randn(shape)
    with torch.set_grad_enabled(is_training):
        result = linear(vectors)
    torch.testing.assert_close(
        result, nn.functional.linear(vectors, linear.weight, linear.bias), rtol=1e-6, atol=1e-6
    )
    assert result.requires_grad == is_training
