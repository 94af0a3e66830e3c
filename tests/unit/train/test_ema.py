"""Averages of weights."""

import pytest
import torch
from torch import nn

from blip3o.train.optimizer import Ema


def test_average_follows_with_a_decay_that_starts_low() -> None:
    weight = nn.Parameter(torch.tensor([0.0]))
    ema = Ema({"weight": weight}, decay=0.5)
    expected = 0.0
    for step in range(30):
        weight.data = torch.tensor([step + 1.0])
        ema.update(step)
        decay = min(0.5, (step + 1) / (step + 10))
        expected = decay * expected + (1 - decay) * (step + 1)
        assert ema.averages["weight"].item() == pytest.approx(expected, rel=1e-5)


def test_averages_without_decay_are_the_weights_themselves() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    ema = Ema({"weight": weight}, decay=0.0)
    weight.data.add_(1.0)
    ema.update(0)
    assert ema.averages["weight"].item() == 2.0
    assert ema.averages["weight"].data_ptr() == weight.data_ptr()
