"""Quantized linear layers: size, error, incomplete groups, the meta device."""

import pytest
import torch
from torch import nn

from blip3o.core.choices import QUANTIZATIONS, Quantization, check_quantization
from blip3o.core.errors import UsageError
from blip3o.nn.quantized import (
    QuantizedLinear,
    dequantize,
    quantize_linears,
    quantize_weight,
)

LEVELS = {"int8": 256, "int4": 16}
each_kind = pytest.mark.parametrize("kind", QUANTIZATIONS)


@each_kind
@pytest.mark.parametrize("width", [1, 31, 128, 200])
def test_no_weight_moves_further_than_a_level(kind: Quantization, width: int) -> None:
    weight = torch.randn(6, width, generator=torch.Generator().manual_seed(0))
    numbers, scale = quantize_weight(weight, kind)
    back = dequantize(numbers, scale, width)
    assert back.shape == weight.shape
    group = numbers.shape[1] * (2 if kind == "int4" else 1) // scale.shape[1]
    step = scale.abs().repeat_interleave(group, 1)[:, :width]
    # Half a level, or a whole one at the end of the range that has one level less.
    assert bool(((back - weight).abs() <= step * 1.0001).all())
    inside = weight.abs() < step * (LEVELS[kind] / 2 - 1)
    assert bool(((back - weight).abs() <= step * 0.5001)[inside].all())


@each_kind
def test_error_of_normal_weights(kind: Quantization) -> None:
    """The largest of 32 normal numbers is at about 2.1; a step is an eighth of that.

    Rounding errs by step / sqrt(12), 0.077, and the level that is missing adds a little.
    """
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    error = (dequantize(*quantize_weight(weight, kind), 1024) - weight).norm() / weight.norm()
    expected = {"int8": 0.0065, "int4": 0.09}[kind]
    assert 0.5 * expected < float(error) < expected


@each_kind
def test_zero_groups_and_exact_levels_come_back(kind: Quantization) -> None:
    half = LEVELS[kind] // 2
    weight = torch.arange(-half, half).float().repeat(2, 1) * torch.tensor([[0.5], [-0.25]])
    weight = torch.cat([weight, torch.zeros(1, weight.shape[1])])
    if kind == "int8":  # a group has half as many weights as there are levels
        weight = weight[:, :half]
    back = dequantize(*quantize_weight(weight, kind), weight.shape[1])
    torch.testing.assert_close(back, weight, rtol=0, atol=0)


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_layers_are_replaced_and_compute_in_their_type(
    kind: Quantization, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 5, bias=False)).to(dtype)
    inputs = torch.randn(3, 64, dtype=dtype)
    plain = model(inputs).detach()
    assert quantize_linears(model, kind) == ["0", "2"]
    assert all(isinstance(model[k], QuantizedLinear) for k in (0, 2))
    assert kind in repr(model)
    output = model(inputs).detach()
    assert output.dtype == dtype
    bound = {"int8": 0.02, "int4": 0.2}[kind]
    assert float((output - plain).norm() / plain.norm()) < bound


@each_kind
def test_size_is_the_same_on_the_meta_device(kind: Quantization) -> None:
    real, sketch = nn.Linear(256, 96), nn.Linear(256, 96, device="meta")
    sizes = [
        [
            (name, tuple(p.shape), p.dtype)
            for name, p in QuantizedLinear(layer, kind).named_parameters()
        ]
        for layer in (real.bfloat16(), sketch.bfloat16())
    ]
    assert sizes[0] == sizes[1]
    layer = QuantizedLinear(real, kind)
    bits = 8 * (layer.numbers.nbytes + layer.scale.nbytes) / (256 * 96)
    assert bits == {"int8": 8.125, "int4": 4.5}[kind]


def test_unknown_kinds_are_refused() -> None:
    assert check_quantization("int4") == "int4"
    with pytest.raises(UsageError, match=r"unknown quantization 'int3'; did you mean int8 or int4"):
        check_quantization("int3")
