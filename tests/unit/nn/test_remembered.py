"""Layers that run once while their input stays the same."""

import torch
from torch import Tensor, nn

from blip3o.nn.remembered import remembered


class Counted(nn.Linear):
    """A linear layer that counts its runs."""

    runs = 0

    def forward(self, input: Tensor) -> Tensor:
        self.runs += 1
        return super().forward(input)


def test_a_layer_runs_again_only_for_other_memory() -> None:
    layer, given = Counted(4, 4), torch.randn(3, 4)
    expected, half = layer(given), layer(given[1:])
    layer.runs = 0
    with remembered([layer]):
        assert torch.equal(layer(given), expected)
        assert layer(given.view(3, 4)) is layer(given)
        assert layer.runs == 1
        assert torch.equal(layer(given[1:]), half)
        assert torch.equal(layer(given.clone()), expected)
        assert layer.runs == 3
    layer(given)
    layer(given)
    assert layer.runs == 5
    assert "forward" not in vars(layer)


def test_contexts_may_be_nested_and_end_by_an_error() -> None:
    layer, first, second = Counted(4, 4), torch.randn(3, 4), torch.randn(3, 4)
    expected = layer(first), layer(second)
    with remembered([layer]):
        outer = layer(first)
        try:
            with remembered([layer]):
                assert torch.equal(layer(second), expected[1])
                raise RuntimeError
        except RuntimeError:
            pass
        assert torch.equal(layer(first), outer)
    assert "forward" not in vars(layer)
    assert torch.equal(outer, expected[0])
