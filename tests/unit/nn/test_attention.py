"""Attention: every implementation equals the formula."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o.nn.attention import attend, attend_by_products


def formula(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ value


def random_inputs(heads: int, kv_heads: int, num_queries: int, num_keys: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, num_queries, 8), (2, kv_heads, num_keys, 8), (2, kv_heads, num_keys, 8)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in shapes
    ]


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("route", [attend, attend_by_products])
def test_grouped_heads_equal_the_formula(
    route: Callable[..., Tensor], heads: int, kv_heads: int
) -> None:
    inputs = random_inputs(heads, kv_heads, 5, 7)
    torch.testing.assert_close(route(*inputs), formula(*inputs))


@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"), [(torch.float32, 1.3e-6, 1e-5), (torch.bfloat16, 0.02, 0.02)]
)
def test_training_route_on_the_cpu_equals_the_fused_kernel(
    dtype: torch.dtype, rtol: float, atol: float
) -> None:
    inputs = [x.detach().to(dtype).requires_grad_() for x in random_inputs(4, 2, 5, 7)]
    target = torch.randn(2, 4, 5, 8, dtype=dtype)
    with torch.no_grad():
        fused = attend(*inputs)
    chosen = attend(*inputs)
    assert _is_of_products(chosen)
    torch.testing.assert_close(chosen, fused, rtol=rtol, atol=atol)
    gradients = torch.autograd.grad((chosen * target).sum(), inputs)
    expected = torch.autograd.grad((formula(*inputs) * target).sum(), inputs)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=rtol, atol=atol)


@pytest.mark.parametrize("kind", ["bool mask", "float mask", "causal"])
@pytest.mark.parametrize("is_autocast", [False, True])
def test_masked_training_route_in_bf16_equals_the_fused_kernel(
    kind: str, is_autocast: bool
) -> None:
    inputs = [x.detach().requires_grad_() for x in random_inputs(4, 2, 5, 5)]
    seen = torch.rand(2, 1, 5, 5) < 0.6
    seen[..., 0] = True
    options: dict[str, Any] = {
        "bool mask": {"mask": seen},
        "float mask": {"mask": torch.randn(2, 1, 5, 5)},
        "causal": {"is_causal": True},
    }[kind]
    options["scale"] = 0.3
    given = [x.float() if is_autocast else x.to(torch.bfloat16) for x in inputs]
    if kind == "float mask" and not is_autocast:
        options["mask"] = options["mask"].to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        chosen = attend(*given, **options)
        with torch.no_grad():
            fused = attend(*given, **options)
    assert _is_of_products(chosen)
    assert not _is_of_products(attend(*(x.float() for x in inputs), is_causal=True))
    torch.testing.assert_close(chosen.float(), fused.float(), rtol=0.02, atol=0.02)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    if kind == "float mask":
        options["mask"] = options["mask"].double()
    right = attend(*exact, **options)
    expected = torch.autograd.grad(right.sum(), exact[0])[0]
    gradient = torch.autograd.grad(chosen.float().sum(), inputs[0])[0]
    torch.testing.assert_close(gradient.double(), expected, rtol=0.05, atol=0.02)


def _is_of_products(result: torch.Tensor) -> bool:
    """Returns whether the last operation of a result is a product or a type conversion."""
    node = result.grad_fn
    while node is not None and type(node).__name__ in ("ToCopyBackward0", "UnsafeViewBackward0"):
        node = node.next_functions[0][0]
    return "Bmm" in repr(node) or "Matmul" in repr(node)


def test_bool_mask_hides_keys() -> None:
    inputs = random_inputs(2, 2, 3, 4)
    mask = torch.tensor([[True, False, True, True], [True, True, False, True]])[:, None, None]
    torch.testing.assert_close(attend(*inputs, mask=mask), formula(*inputs, mask=mask))


@pytest.mark.parametrize("num_queries", [1, 3, 6])
def test_causal_queries_are_the_last_positions(num_queries: int) -> None:
    query, key, value = random_inputs(2, 2, 6, 6)
    full = attend(query, key, value, is_causal=True)
    last = attend(query[:, :, -num_queries:], key, value, is_causal=True)
    torch.testing.assert_close(last, full[:, :, -num_queries:])
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    torch.testing.assert_close(full, formula(query, key, value, mask))


def test_mask_and_causal_together_are_refused() -> None:
    query, key, value = random_inputs(2, 2, 2, 2)
    with pytest.raises(ValueError, match="not both"):
        attend(query, key, value, mask=torch.ones(2, 2, dtype=torch.bool), is_causal=True)
