"""Norm, feed-forward and timestep embedding against their formulas."""

import math

import pytest
import torch
from torch.nn import functional

from blip3o.nn.embedding import TimestepEmbedding, timestep_sinusoid
from blip3o.nn.mlp import SwiGLU, swiglu_size
from blip3o.nn.norm import RMSNorm, rms_norm


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    norm = RMSNorm(2, eps=0.0)
    torch.testing.assert_close(
        norm(torch.tensor([[3.0, 4.0]])) ** 2 * 12.5, torch.tensor([[9.0, 16.0]])
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lean_rms_norm_equals_the_formula_with_gradients(dtype: torch.dtype) -> None:
    norm = RMSNorm(24, eps=1e-2)
    torch.nn.init.normal_(norm.weight)
    hidden = torch.randn(3, 5, 24, dtype=dtype, requires_grad=True)
    grad = torch.randn(3, 5, 24, dtype=dtype)
    inputs = (hidden, norm.weight)
    lean = norm(hidden)
    assert "LeanRMSNorm" in repr(lean.grad_fn)
    plain = rms_norm(hidden, norm.weight, norm.eps)
    torch.testing.assert_close(lean, plain)
    expected = torch.autograd.grad(plain, inputs, grad)
    for actual, other in zip(torch.autograd.grad(lean, inputs, grad), expected, strict=True):
        torch.testing.assert_close(actual, other)


def test_rms_norm_accepts_tokens_that_are_not_contiguous() -> None:
    norm, hidden = RMSNorm(6), torch.randn(4, 6, 3).transpose(1, 2).requires_grad_()
    norm(hidden).sum().backward()
    assert hidden.grad is not None
    torch.testing.assert_close(norm(hidden), norm(hidden.contiguous()))


def test_rms_norm_keeps_fp32_statistics_in_half_precision() -> None:
    norm = RMSNorm(4).bfloat16()
    hidden = torch.full((1, 4), 300.0).bfloat16()  # squares of 300 lose much in bf16
    assert norm(hidden).dtype == torch.bfloat16
    torch.testing.assert_close(norm(hidden).float(), torch.ones(1, 4))


@pytest.mark.parametrize(
    ("hidden_size", "multiple_of", "multiplier", "expected"),
    [(1792, 256, None, 4864), (192, 256, None, 512), (96, 64, 1.3, 384), (64, 32, None, 192)],
)
def test_swiglu_size(
    hidden_size: int, multiple_of: int, multiplier: float | None, expected: int
) -> None:
    assert swiglu_size(hidden_size, multiple_of, multiplier) == expected


def test_swiglu_gates_with_the_first_layer() -> None:
    mlp, hidden = SwiGLU(4, 6), torch.randn(2, 3, 4)
    gate, up, down = (layer.weight for layer in (mlp.linear_1, mlp.linear_3, mlp.linear_2))
    expected = (functional.silu(hidden @ gate.T) * (hidden @ up.T)) @ down.T
    torch.testing.assert_close(mlp(hidden), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_silu_of_16_bits_is_computed_in_fp32(dtype: torch.dtype) -> None:
    patterns = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    values = patterns[patterns.isfinite()].requires_grad_()
    upstream = torch.linspace(-2, 2, len(values)).to(dtype)
    direct = functional.silu(values)
    (gradient,) = torch.autograd.grad(direct, values, upstream)
    plain = functional.silu(values.float()).to(dtype)
    assert torch.equal(direct, plain)
    assert torch.equal(gradient, torch.autograd.grad(plain, values, upstream)[0])


def test_sinusoid_is_cosines_then_sines() -> None:
    values = timestep_sinusoid(torch.tensor([250.5]), 256)[0]
    for index in (0, 1, 127):
        angle = 250.5 * math.exp(-math.log(10000) * index / 128)
        assert float(values[index]) == pytest.approx(math.cos(angle), abs=1e-4)
        assert float(values[128 + index]) == pytest.approx(math.sin(angle), abs=1e-4)


def test_timestep_embedding_accepts_integers_and_keeps_the_weight_type() -> None:
    embedding = TimestepEmbedding(8).bfloat16()
    whole = embedding(torch.tensor([966]))
    assert whole.dtype == torch.bfloat16
    assert torch.equal(whole, embedding(torch.tensor([966.0])))
