"""Joined products equal the layers side by side, with and without oneDNN's operators."""

import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blip3o.nn import joined
from blip3o.nn.joined import JoinedLinear


def layers(dtype: torch.dtype, *, bias: bool) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(48, size, bias=bias).to(dtype) for size in (32, 16, 16)]


@torch.no_grad()
def side_by_side(parts: list[nn.Linear], inputs: Tensor) -> Tensor:
    return torch.cat([part(inputs) for part in parts], dim=-1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_joined_products_equal_the_layers(
    dtype: torch.dtype, error: float, rows: int, bias: bool
) -> None:
    parts, inputs = layers(dtype, bias=bias), torch.randn(rows, 48).to(dtype)
    product = JoinedLinear(parts, may_copy=True, num_rows=8)
    torch.testing.assert_close(product(inputs), side_by_side(parts, inputs), rtol=error, atol=error)


def without_operators(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.ops, "mkldnn", types.SimpleNamespace())


def with_renamed_product(patch: pytest.MonkeyPatch) -> None:
    names = ("_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    left: dict[str, Any] = {name: getattr(torch.ops.mkldnn, name, None) for name in names}
    patch.setattr(torch.ops, "mkldnn", types.SimpleNamespace(**left))


def without_onednn(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.backends.mkldnn, "is_available", lambda: False)


@pytest.mark.parametrize("lack", [without_operators, with_renamed_product, without_onednn])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_layers_are_called_where_the_operators_are_missing(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, lack: Any
) -> None:
    parts, inputs = layers(dtype, bias=True), torch.randn(3, 48).to(dtype)
    expected = side_by_side(parts, inputs)
    lack(monkeypatch)
    assert not joined._has_kernels(dtype)
    with torch.no_grad():
        product = JoinedLinear(parts, may_copy=True, num_rows=8)
        assert torch.equal(product(inputs), expected)


@pytest.mark.parametrize("halves", [(True, True, True), (False, True, True)])
def test_autocast_and_layers_of_two_types_give_the_bits_of_the_layers(
    halves: tuple[bool, ...],
) -> None:
    parts, inputs = layers(torch.float32, bias=False), torch.randn(3, 48)
    for part, is_half in zip(parts, halves, strict=True):
        part.to(torch.bfloat16 if is_half else torch.float32)
    product = JoinedLinear(parts, may_copy=True, num_rows=8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(product(inputs), side_by_side(parts, inputs))
