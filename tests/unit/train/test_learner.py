"""The trained module, and other weights in it."""

import pytest
import torch
from torch import nn

from blip3o.train.learner import Learner


def test_own_weights_come_back_even_after_an_error() -> None:
    model = nn.Linear(1, 1, bias=False)
    learner = Learner(model, [])
    own = model.weight.detach().clone()
    seen = []

    def fail_inside() -> None:
        with learner.using({"weight": torch.tensor([[7.0]])}):
            seen.append(model.weight.item())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert seen == [7.0]
    assert torch.equal(model.weight, own)
