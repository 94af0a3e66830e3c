"""Preparing a model for training."""

import pytest
import torch
from torch import nn

from blip3o.train.config import OptimizerConfig, TrainConfig
from blip3o.train.model_setup import apply_switches, halve_frozen


def test_a_model_without_a_backbone_gets_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    train = TrainConfig(
        steps=1,
        global_batch_size=1,
        micro_batch_size=1,
        trainable=(),
        optimizer=OptimizerConfig(lr=0.1),
        padding_free=True,
    )
    apply_switches(nn.Linear(2, 2), train)
    assert "train.padding_free does nothing" in capsys.readouterr().err


def test_frozen_weights_of_products_are_halved_where_that_is_lossless() -> None:
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(3, 3),
            "fine": nn.Linear(3, 3),
            "trained": nn.Linear(3, 3),
            "conv": nn.Conv2d(3, 3, 1),
            "norm": nn.LayerNorm(3),
            "embedding": nn.Embedding(5, 3),
            "head": nn.Linear(3, 5, bias=False),
        }
    )
    model["head"].weight = model["embedding"].weight
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("trained"))
        if not name.startswith("fine"):
            parameter.data = parameter.data.bfloat16().float()
    inputs = torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model["linear"](inputs)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    halve_frozen(model, torch.bfloat16)
    halved = {n for n, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert halved == {"linear.weight", "linear.bias", "conv.weight", "conv.bias"}
    assert all(torch.equal(p.float(), before[n]) for n, p in model.named_parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model["linear"](inputs), expected)
