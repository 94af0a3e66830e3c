"""Rotary positions against their formulas."""

import math

import pytest
import torch

from blip3o.nn.rope import (
    _rotate_pairs,
    grid_rope_table,
    multimodal_rope_table,
    rope_table,
    rotate_halves,
    rotate_neighbors,
)


def test_neighbor_pairs_turn_by_the_angle() -> None:
    table = (torch.tensor([0.0]), torch.tensor([1.0]))  # a quarter turn
    rotated = rotate_neighbors(torch.tensor([[3.0, 4.0]]), table)
    torch.testing.assert_close(rotated, torch.tensor([[-4.0, 3.0]]))


def test_real_route_of_compiled_code_equals_complex_route() -> None:
    values = torch.randn(2, 5, 3, 8)
    cos, sin = rope_table(torch.arange(5), 8)
    table = (cos[:, None], sin[:, None])
    real = _rotate_pairs(values.unflatten(-1, (-1, 2)), table).flatten(-2)
    torch.testing.assert_close(real, rotate_neighbors(values, table))


@pytest.mark.parametrize("rotate", [rotate_neighbors, rotate_halves])
def test_scores_depend_on_distance_only(rotate: object) -> None:
    query, key = torch.randn(2, 16).double()
    scores = []
    for start in (0, 11):
        table = rope_table(torch.tensor([start, start + 3]), 16)
        rotated = rotate(torch.stack([query, key]), table)  # type: ignore[operator]
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
    values, table = torch.randn(4, 8), rope_table(torch.arange(4), 8)
    half = rotate_neighbors(values.bfloat16(), table)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, rotate_neighbors(values.bfloat16().float(), table).bfloat16())


def test_each_section_turns_with_its_own_axis() -> None:
    positions = torch.tensor([[[5]], [[70]], [[900]]])
    cos, sin = multimodal_rope_table(positions, 16, (2, 3, 3), 1e6)
    axis_of_pair = [0, 0, 1, 1, 1, 2, 2, 2]
    for pair, axis in enumerate(axis_of_pair):
        angle = float(positions[axis]) * 1e6 ** (-pair / 8)
        assert float(cos[0, 0, pair]) == pytest.approx(math.cos(angle), abs=1e-4)
        assert float(sin[0, 0, pair]) == pytest.approx(math.sin(angle), abs=1e-4)


def test_three_equal_axes_are_one_axis() -> None:
    positions = torch.arange(6)
    three = multimodal_rope_table(positions.expand(3, 1, 6), 16, (2, 3, 3), 1e6)
    one = rope_table(positions, 16, 1e6)
    assert all(torch.equal(a[0], b) for a, b in zip(three, one, strict=True))


def test_sections_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not split the 8 pairs"):
        multimodal_rope_table(torch.zeros(3, 1, 2), 16, (2, 3, 4), 1e6)
