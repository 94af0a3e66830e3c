"""Muon: updates of matrices have equal singular values, and the other weights get AdamW's."""

from typing import Any

import pytest
import torch
from torch import nn

from blip3o.train.config import OptimizerConfig
from blip3o.train.muon import MuonAdamW
from blip3o.train.optimizer import build_optimizer, matrices_of, set_learning_rate

MUON = OptimizerConfig(lr=0.1, matrices="muon", weight_decay=0.0)


def network() -> nn.Module:
    torch.manual_seed(0)
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12)) for _ in range(2))
    return nn.ModuleDict({"embed": nn.Embedding(5, 6), "blocks": blocks, "head": nn.Linear(12, 2)})


def stepped(config: OptimizerConfig, network: nn.Module, num_steps: int = 1) -> Any:
    named = dict(network.named_parameters())
    optimizer = build_optimizer(named, config, matrices_of(network))
    set_learning_rate(optimizer, config.lr)
    generator = torch.Generator().manual_seed(1)
    for _ in range(num_steps):
        for parameter in named.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return optimizer


def test_only_matrices_of_repeated_blocks_are_muons() -> None:
    model = network()
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert [names[one] for one in matrices_of(model)] == ["blocks.0.0.weight", "blocks.1.0.weight"]
    after, plain = network(), network()
    stepped(MUON, after)
    stepped(OptimizerConfig(lr=0.1, weight_decay=0.0), plain)
    for name, expected in plain.named_parameters():
        is_muon = name.startswith("blocks") and name.endswith("0.weight")
        assert torch.equal(after.get_parameter(name), expected) != is_muon, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, 12), (12, 6), (8, 8)])
def test_an_update_is_about_orthogonal_and_as_large_as_that_of_adamw(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    scales = torch.logspace(0, -1.5, shape[1])  # gradients that differ by the direction
    weight = nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape) * scales
    group = {"params": [weight], "is_matrix": True}
    MuonAdamW([group], 0.95, dtype, lr=0.1, weight_decay=0.0).step()
    before, after = (torch.linalg.svdvals(one) for one in (weight.grad, weight.detach()))
    assert before.max() / before.min() > 3
    assert after.max() / after.min() < 2.5
    assert weight.detach().square().mean().sqrt() == pytest.approx(0.1 * 0.2, rel=0.35)
    assert (weight.detach() * weight.grad).sum() < 0


def test_products_in_bf16_give_about_the_update_of_products_in_fp32() -> None:
    updates = []
    for dtype in (torch.float32, torch.bfloat16):
        weight = nn.Parameter(torch.zeros(24, 16))
        weight.grad = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
        group = {"params": [weight], "is_matrix": True}
        MuonAdamW([group], 0.95, dtype, lr=0.1, weight_decay=0.0).step()
        updates.append(weight.detach())
    exact, rounded = updates
    assert not torch.equal(exact, rounded)
    assert (rounded - exact).norm() < 0.03 * exact.norm()


def test_weights_of_matrices_decay() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.zeros(4, 4)
    MuonAdamW([{"params": [weight], "is_matrix": True}], 0.9, lr=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(weight.detach(), torch.full((4, 4), 0.95))


def test_a_weight_without_a_gradient_stays() -> None:
    model = network()
    optimizer = build_optimizer(dict(model.named_parameters()), MUON, matrices_of(model))
    before = {name: one.clone() for name, one in model.state_dict().items()}
    optimizer.step()
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
