"""The attention that backbones use when they train on a CPU equals that of transformers."""

import dataclasses
from typing import Any

import pytest
import torch

from blip3o.models.backbones import attention
from blip3o.models.backbones.llama3 import Llama3BackboneConfig
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.backbones.qwen3 import Qwen3BackboneConfig

BACKBONES: dict[str, Any] = {
    "qwen3": dataclasses.replace(Qwen3BackboneConfig.tiny(), num_kv_heads=1),
    "llama3": Llama3BackboneConfig.tiny(),
    "qwen2_5_vl": Qwen2_5VLBackboneConfig.tiny(),
}


def learn(backbone: Any, mask: torch.Tensor) -> list[torch.Tensor]:
    """Returns the states of the real tokens and the gradients of all parameters."""
    ids = torch.arange(mask.numel()).view(mask.shape) % 50 + 10
    states = backbone(backbone.embed(ids), mask)[mask]
    backbone.zero_grad()
    (states * torch.linspace(-1, 1, states.numel()).view(states.shape)).sum().backward()
    return [states.detach(), *(p.grad for p in backbone.parameters() if p.grad is not None)]


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Query shapes that `attend` received, one per layer."""
    seen: list[torch.Size] = []
    plain = attention.attend

    def attend(query: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        seen.append(query.shape)
        return plain(query, *others, **options)

    monkeypatch.setattr(attention, "attend", attend)
    return seen


@pytest.mark.parametrize("name", list(BACKBONES))
@pytest.mark.parametrize("padding", ["left", "right", "none"])
def test_products_equal_the_fused_kernel(
    name: str, padding: str, used: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES[name].build()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    mask = torch.ones(3, 7, dtype=torch.bool)
    if padding == "left":
        mask[0, :3] = mask[2, :5] = False
    if padding == "right":
        mask[0, -3:] = mask[2, -5:] = False
    fused = learn(backbone, mask)
    assert not used  # in fp32 the fused kernel is faster
    monkeypatch.setattr(attention, "prefers_products", lambda *_, **__: True)
    monkeypatch.setattr("blip3o.nn.attention.prefers_products", lambda *_, **__: True)
    products = learn(backbone, mask)
    assert len(used) == BACKBONES[name].num_layers
    for one, other in zip(products, fused, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_scaling_of_the_layer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (torch.randn(2, heads, 5, 4) for heads in (4, 2, 2))
    layer: Any = torch.nn.Module()
    layer.num_key_value_groups = 2
    fused, _ = attention.attention(layer, query, key, value, None, scaling=0.9)
    monkeypatch.setattr(attention, "prefers_products", lambda *_, **__: True)
    products, _ = attention.attention(layer, query, key, value, None, scaling=0.9)
    torch.testing.assert_close(products, fused)


def test_bf16_training_on_a_cpu_takes_the_products(used: list[torch.Size]) -> None:
    backbone = BACKBONES["qwen3"].build()
    mask = torch.ones(2, 4, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        learn(backbone, mask)
        assert len(used) == BACKBONES["qwen3"].num_layers
        with torch.no_grad():
            backbone(backbone.embed(torch.full((2, 4), 7)), mask)
    assert len(used) == BACKBONES["qwen3"].num_layers
