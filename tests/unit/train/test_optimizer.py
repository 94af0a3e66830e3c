"""The trained parameters, their groups and their learning rates."""

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from blip3o.core.errors import UsageError
from blip3o.train.config import OptimizerConfig
from blip3o.train.optimizer import (
    build_optimizer,
    learning_rate,
    select_buffers,
    select_trainable,
    set_learning_rate,
)


def test_only_the_named_parts_and_the_objectives_are_trained(toys: Any) -> None:
    model, objectives = toys.model(), nn.ModuleList([toys.objective()])
    chosen = select_trainable(model, objectives, ["body.0", "head"])
    assert list(chosen) == [
        "body.0.weight",
        "body.0.bias",
        "head.weight",
        "head.bias",
        "objectives.0.shift",
    ]
    asking = {name for name, p in model.named_parameters() if p.requires_grad}
    assert asking == set(chosen) - {"objectives.0.shift"}


def test_a_prefix_ends_at_a_dot() -> None:
    model = nn.ModuleDict({"dit": nn.Linear(1, 1), "dit2": nn.Linear(1, 1)})
    assert list(select_trainable(model, nn.ModuleList(), ["dit"])) == ["dit.weight", "dit.bias"]


def test_an_unknown_part_is_refused_with_the_nearest(toys: Any) -> None:
    with pytest.raises(UsageError, match="unknown part to train 'haed'; did you mean head"):
        select_trainable(toys.model(), nn.ModuleList(), ["haed"])


def test_nothing_to_train_is_refused(toys: Any) -> None:
    with pytest.raises(UsageError, match=r"train\.trainable is empty"):
        select_trainable(toys.model(), nn.ModuleList(), [])


def test_only_statistics_of_trained_modules_are_kept(toys: Any) -> None:
    model = toys.model()
    select_trainable(model, nn.ModuleList(), ["head"])
    assert select_buffers(model, nn.ModuleList()) == {}
    select_trainable(model, nn.ModuleList(), ["body"])
    objective = nn.Module()
    objective.register_buffer("seen", torch.zeros(1))
    objective.register_buffer("scratch", torch.zeros(1), persistent=False)
    assert set(select_buffers(model, nn.ModuleList([objective]))) == {
        "body.1.running_mean",
        "body.1.running_var",
        "body.1.num_batches_tracked",
        "objectives.0.seen",
    }


def test_weights_decay_and_rates_differ_by_group(toys: Any) -> None:
    chosen = select_trainable(toys.model(), nn.ModuleList(), ["body", "head"])
    config = OptimizerConfig(lr=1.0, weight_decay=0.1, lr_multipliers={"body": 0.5, "body.1": 0.25})
    optimizer = build_optimizer(chosen, config)
    set_learning_rate(optimizer, 2.0)
    names = {parameter: name for name, parameter in chosen.items()}
    found = {
        names[p]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert found == {
        "body.0.weight": (1.0, 0.1),
        "body.0.bias": (1.0, 0.0),
        "body.1.weight": (0.5, 0.0),
        "body.1.bias": (0.5, 0.0),
        "head.weight": (2.0, 0.1),
        "head.bias": (2.0, 0.0),
    }


def test_a_multiplier_without_a_parameter_is_refused(toys: Any) -> None:
    chosen = select_trainable(toys.model(), nn.ModuleList(), ["head"])
    with pytest.raises(UsageError, match="lr_multipliers 'body'"):
        build_optimizer(chosen, OptimizerConfig(lr=1.0, lr_multipliers={"body": 0.5}))


def test_rate_warms_up_then_falls_to_the_minimum() -> None:
    config = OptimizerConfig(lr=1.0, min_lr=0.1, warmup_steps=4)
    rates = [learning_rate(step, 24, config) for step in range(25)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[14] == pytest.approx(0.55)
    assert rates[24] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
    assert learning_rate(0, 5, OptimizerConfig(lr=1.0, warmup_steps=0)) == 1.0
