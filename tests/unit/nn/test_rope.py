"""Rotary positions against their formulas."""

import pytest
import torch

from blip3o.nn.rope import RopeTable, grid_rope_table, rotate_neighbors


def line_table(positions: torch.Tensor, head_dim: int) -> RopeTable:
    """Returns the table of positions on one axis, at the frequencies 10000^(-2k / K)."""
    exponents = torch.arange(head_dim // 2) / (head_dim // 2)
    angles = positions.float()[:, None] * 10000.0**-exponents
    return angles.cos(), angles.sin()


def test_neighbor_pairs_rotate_by_the_angle() -> None:
    table = (torch.tensor([0.0]), torch.tensor([1.0]))  # a quarter turn
    rotated = rotate_neighbors(torch.tensor([[3.0, 4.0]]), table)
    torch.testing.assert_close(rotated, torch.tensor([[-4.0, 3.0]]))


def test_real_arithmetic_of_compiled_code_equals_complex_arithmetic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = torch.randn(2, 5, 3, 8)
    cos, sin = line_table(torch.arange(5), 8)
    table = (cos[:, None], sin[:, None])
    by_complex = rotate_neighbors(values, table)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotate_neighbors(values, table), by_complex)


def test_scores_depend_only_on_the_distance() -> None:
    query, key = torch.randn(2, 16).double()
    scores: list[float] = []
    for start in (0, 11):
        table = line_table(torch.tensor([start, start + 3]), 16)
        rotated = rotate_neighbors(torch.stack([query, key]), table)
        scores.append(float((rotated[0] * rotated[1]).sum()))
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_grid_alternates_rows_and_columns() -> None:
    cos, sin = grid_rope_table(2, 3, 8)
    assert cos.shape == sin.shape == (6, 4)
    frequencies = torch.tensor([1.0, 0.01])
    for token in range(6):
        row, column = divmod(token, 3)
        angles = torch.stack([row * frequencies, column * frequencies], dim=-1).flatten()
        torch.testing.assert_close(cos[token], angles.cos())
        torch.testing.assert_close(sin[token], angles.sin())


def test_half_precision_values_are_rotated_in_fp32() -> None:
    values, table = torch.randn(4, 8), line_table(torch.arange(4), 8)
    half = rotate_neighbors(values.bfloat16(), table)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, rotate_neighbors(values.bfloat16().float(), table).bfloat16())
