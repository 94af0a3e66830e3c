"""The count of operations, compared with torch's own and with numbers by hand."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from blip3o.models.generators.query_dit import QueryDiT
from blip3o.models.unified import UnifiedModelConfig
from blip3o.nn.blocks import checkpoint_blocks
from blip3o.train.flops import count_flops, peak_tflops


def net(freeze_first: bool = False) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    layers[0].requires_grad_(not freeze_first)
    return layers


def counted(model: nn.Module, backward: bool = True) -> float:
    with count_flops(model) as count:
        output = model(torch.ones(3, 5, 4))
        if backward:
            output.sum().backward()
    return count.total


def test_the_count_of_trained_and_frozen_layers_equals_numbers_by_hand() -> None:
    first, second = 2 * 4 * 8 * 15, 2 * 8 * 2 * 15
    assert counted(net()) == 2 * first + 3 * second  # the data need no gradient
    assert counted(net(freeze_first=True)) == first + 2 * second
    with torch.no_grad():
        assert counted(net(), backward=False) == first + second


def test_the_count_of_a_dit_agrees_with_torch_except_for_attention() -> None:
    generator = UnifiedModelConfig.tiny().build().generator
    assert isinstance(generator, QueryDiT)
    dit = generator.dit
    inputs = torch.randn(2, 4, 8), torch.rand(2), torch.randn(2, 4, 16)
    with count_flops(dit) as count:
        dit.velocity(*inputs).sum().backward()
    with FlopCounterMode(display=False) as reference:
        dit.velocity(*inputs).sum().backward()
    by_operator = reference.get_flop_counts()["Global"]
    linear = sum(n for op, n in by_operator.items() if str(op) in ("aten.mm", "aten.addmm"))
    assert count.total == linear


def test_passes_that_checkpointing_repeats_count_once() -> None:
    model = nn.Sequential(nn.ModuleList([net()])[0])
    plain = counted(model)
    blocks = nn.Module()
    blocks.layers = nn.ModuleList([model[0]])
    checkpoint_blocks(blocks)
    assert counted(model) == plain


def test_only_known_gpus_have_a_peak() -> None:
    assert peak_tflops(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40", None),
    ],
)
def test_gpus_are_recognized_by_the_names_of_their_drivers(
    monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_tflops(torch.device("cuda")) == peak
