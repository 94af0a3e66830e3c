"""The module that is trained: one forward pass, and other weights in it for a while."""

import pytest
import torch
from torch import nn

from blip3o.train.learner import Learner


def test_other_weights_are_held_for_a_while_even_if_an_error_ends_it() -> None:
    model = nn.Linear(1, 1, bias=False)
    learner = Learner(model, [])
    own = model.weight.detach().clone()
    seen = []

    def fail_inside() -> None:
        with learner.holding({"weight": torch.tensor([[7.0]])}):
            seen.append(model.weight.item())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert seen == [7.0]
    assert torch.equal(model.weight, own)
