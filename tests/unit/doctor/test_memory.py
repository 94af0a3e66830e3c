"""Memory of a model: published sizes, weights that offloading keeps, forms that fit a device."""

import copy

import pytest
import torch
from torch import nn

from blip3o.core.errors import UsageError
from blip3o.doctor.memory import (
    DRAWING,
    RELEASED,
    Need,
    _peak,
    activation_bytes,
    choose,
    config_of,
    meta_model,
    needs_of,
    weight_bytes,
)
from blip3o.doctor.report import table
from blip3o.generate.offload import OFFLOADS, Offload
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.generate.placement import move
from blip3o.models.quantize import quantize_backbone
from blip3o.models.unified import UnifiedModelConfig
from blip3o.nn.quantized import Quantization

GIB = 2**30


def there(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.nbytes for tensor in tensors if not tensor.is_meta)


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("offload", OFFLOADS)
def test_computed_weights_equal_the_weights_in_memory(
    tiny_pipe: Blip3oPipeline, offload: Offload, quantize: Quantization | None
) -> None:
    """Compares with the peak bytes seen by the layers while an image is generated."""
    model = copy.deepcopy(tiny_pipe.model)
    if quantize:
        quantize_backbone(model, quantize)
    pipe = Blip3oPipeline(model, tiny_pipe.tokenizer)
    if offload != "none":
        pipe._offload("cpu", by_block=offload == "sequential")
    seen: list[int] = []
    for layer in model.modules():
        if any(True for _ in layer.parameters(recurse=False)):
            layer.register_forward_pre_hook(lambda *_: seen.append(there(model)))
    pipe("a red cat")
    computed = weight_bytes(meta_model(model.config, quantize), offload)
    assert max(seen) == max(computed.values())


@pytest.mark.parametrize(
    ("name", "backbone", "generator"),
    [
        ("blip3o-4b", 3_754_074_112, 1_362_257_824),
        ("blip3o-8b", 8_289_328_128, 1_365_010_336),
    ],
)
def test_released_models_in_bf16(name: str, backbone: int, generator: int) -> None:
    """Two bytes for every published weight, and tables of less than 5 MB."""
    model = meta_model(config_of(name))
    move(model, torch.device("meta"), torch.bfloat16)
    weights = weight_bytes(model, "model")
    decoder = 2_525_520_644 + 83_653_863
    small = 2 * 64 * model.config.backbone.hidden_size
    for part, count in {
        "backbone": backbone,
        "generator": generator,
        "image_decoder": decoder,
    }.items():
        tables = weights[part] - 2 * count - small
        assert 0 <= tables < 5e6, part  # buffers of all components
    total = weight_bytes(model, "none")["generator"]
    assert abs(total - 2 * (backbone + generator + decoder + 4_350_208_256) - small) < 5e6


def test_weights_of_the_8b_with_a_4_bit_backbone() -> None:
    model = meta_model(config_of("blip3o-8b"), "int4")
    move(model, torch.device("meta"), torch.bfloat16)
    weights = weight_bytes(model, "model")
    # 6.53 G weights in blocks of 4.5 bits; embedding table, head and vision tower in 16.
    assert 6.6 * GIB < weights["backbone"] < 6.8 * GIB
    assert max(weights.values()) == weights["backbone"]


@pytest.mark.slow
def test_the_8b_draws_in_24_gb_whole_and_in_12_gb_with_a_4_bit_backbone() -> None:
    needs = {(n.precision, n.quantize, n.offload): n for n in needs_of(config_of("blip3o-8b"))}
    whole, small = needs["bf16", None, "model"], needs["bf16", "int4", "model"]
    assert whole.peak + GIB < 24e9
    assert small.peak + GIB < 12e9
    assert needs["bf16", None, "none"].peak > 24e9
    values = list(needs.values())
    assert choose(values, 24 * 10**9, ["bf16"])[0].flags == "--dtype bf16 --offload model"
    assert choose(values, 8 * 10**9, ["bf16"])[0].offload == "sequential"
    best, lacking = choose(values, 10**9, ["bf16"])
    assert lacking == best.peak + GIB - 10**9 > 0
    lines = table(values)
    assert len(lines) == 10
    assert "15.44 (15." in next(line for line in lines if line.startswith("plain     bf16"))


def test_smaller_forms_are_smaller() -> None:
    needs = {(n.quantize, n.precision, n.offload): n for n in needs_of(UnifiedModelConfig.tiny())}
    assert len(needs) == 27
    for (quantize, precision, offload), need in needs.items():
        assert 0 < need.weights < need.peak
        if offload != "none":
            assert need.weights < needs[quantize, precision, "none"].weights
        if precision != "fp32":
            assert need.weights < needs[quantize, "fp32", offload].weights


def test_choosing() -> None:
    def need(quantize: Quantization | None, offload: Offload, gigabytes: int) -> Need:
        size = gigabytes * GIB
        return Need("bf16", quantize, offload, size, size)

    needs = [
        need("int4", "sequential", 1),
        need("int4", "none", 3),
        need("int4", "model", 2),
        need(None, "sequential", 2),
        need(None, "model", 5),
        need(None, "none", 9),
    ]
    expected = {10: needs[5], 6: needs[4], 4: needs[1], 3: needs[2], 2: needs[0], 1: needs[0]}
    for gigabytes, best in expected.items():
        assert choose(needs, gigabytes * GIB, ["bf16"]) == (best, best.peak - (gigabytes - 1) * GIB)
    assert choose(needs, 3 * GIB, ["bf16"], may_offload=False) == (needs[1], GIB)
    assert needs[2].flags == "--dtype bf16 --quantize int4 --offload model"


def test_live_memory_counts_tensors_that_are_still_referenced() -> None:
    start = torch.empty(1000, device="meta")

    def chain() -> torch.Tensor:
        one = start + 1  # 4000
        two = one.view(10, 100).t() * 2  # 8000; a view allocates nothing
        del one
        three = two.double()  # 4000 + 8000
        three.add_(1)
        return three[:1]

    assert _peak(chain) == 12000


def test_activations_double_with_the_type() -> None:
    model = meta_model(UnifiedModelConfig.tiny())
    for name in DRAWING:
        move(model, torch.device("meta"), torch.float32)
        single = activation_bytes(model, name)
        move(model, torch.device("meta"), torch.bfloat16)
        half = activation_bytes(model, name)
        assert 0 < half <= single <= 2 * half


def test_unknown_models_are_refused() -> None:
    assert sorted(RELEASED) == ["blip3o-4b", "blip3o-8b"]
    assert config_of("pocket").num_reserved_positions > 0
    with pytest.raises(UsageError, match="unknown model 'blip3o-8'; did you mean blip3o-8b"):
        config_of("blip3o-8")
