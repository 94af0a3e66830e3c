"""Rotary positions: one axis, two axes (image grids) and Qwen2.5-VL's three axes.

A table is a pair (cos, sin) of fp32 angles [..., K / 2]. Tables are computed where they are needed
and stored nowhere, so a module built on the meta device has nothing to restore. Two ways to pair
the K channels of a head are in use: neighbors (2k, 2k + 1) and halves (k, k + K / 2).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

RopeTable = tuple[Tensor, Tensor]
"""Cosines and sines of the rotation angles, fp32, [..., K / 2] each."""


def rope_table(positions: Tensor, head_dim: int, theta: float = 10000.0) -> RopeTable:
    """Returns the table of one-axis positions, [..., K / 2].

    Args:
        positions: positions, whole or fractional, [...].
        head_dim: width of a head (K), even.
        theta: base of the geometric frequencies theta^(-2k / K).
    """
    return _cos_sin(_angles(positions, head_dim // 2, theta))


def grid_rope_table(
    rows: int,
    columns: int,
    head_dim: int,
    theta: float = 10000.0,
    device: torch.device | None = None,
) -> RopeTable:
    """Returns the table of a grid in row-major order, [rows * columns, K / 2].

    Pair 2j turns with the row and pair 2j + 1 with the column, both at theta^(-4j / K).

    Args:
        rows: number of rows.
        columns: number of columns.
        head_dim: width of a head (K), a multiple of 4.
        theta: base of the frequencies.
        device: where the table is to be.

    Reference:
        Lumina-Next's 2-D rotary embedding; parity family `dit`.
    """
    row = _angles(torch.arange(rows, device=device), head_dim // 4, theta)
    column = _angles(torch.arange(columns, device=device), head_dim // 4, theta)
    shape = (rows, columns, head_dim // 4)
    angles = torch.stack([row[:, None].expand(shape), column[None].expand(shape)], dim=-1)
    return _cos_sin(angles.reshape(rows * columns, head_dim // 2))


def multimodal_rope_table(
    positions: Tensor, head_dim: int, sections: Sequence[int], theta: float
) -> RopeTable:
    """Returns the table of (time, row, column) positions, [B, T, K / 2].

    Args:
        positions: positions on the three axes, [3, B, T].
        head_dim: width of a head (K).
        sections: how many of the K / 2 pairs belong to each axis, in axis order.
        theta: base of the frequencies.

    Raises:
        ValueError: if the sections do not add up to K / 2.

    Reference:
        Qwen2.5-VL's multimodal rotary embedding (sections 16, 24, 24; theta 1e6).
    """
    if sum(sections) != head_dim // 2 or len(sections) != len(positions):
        raise ValueError(f"sections {tuple(sections)} do not split the {head_dim // 2} pairs")
    angles = _angles(positions, head_dim // 2, theta)
    parts = [part[axis] for axis, part in enumerate(angles.split(tuple(sections), dim=-1))]
    return _cos_sin(torch.cat(parts, dim=-1))


def rotate_neighbors(values: Tensor, table: RopeTable) -> Tensor:
    """Returns queries or keys rotated, pairing channels (2k, 2k + 1); computed in fp32.

    Args:
        values: [..., K].
        table: angles, broadcastable to [..., K / 2].
    """
    pairs = values.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # inductor fuses real arithmetic but not complex numbers
        return _rotate_pairs(pairs, table).flatten(-2).to(values.dtype)
    rotated = torch.view_as_complex(pairs) * torch.complex(*table)
    return torch.view_as_real(rotated).flatten(-2).to(values.dtype)


def rotate_halves(values: Tensor, table: RopeTable) -> Tensor:
    """Returns queries or keys rotated, pairing channels (k, k + K / 2); computed in fp32.

    Args:
        values: [..., K].
        table: angles, broadcastable to [..., K / 2].
    """
    cos, sin = table
    first, second = values.float().chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(values.dtype)


def _rotate_pairs(pairs: Tensor, table: RopeTable) -> Tensor:
    cos, sin = table
    first, second = pairs.unbind(-1)
    return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _angles(positions: Tensor, num_pairs: int, theta: float) -> Tensor:
    exponents = torch.arange(num_pairs, device=positions.device, dtype=torch.float32) / num_pairs
    return positions.float().unsqueeze(-1) * theta**-exponents


def _cos_sin(angles: Tensor) -> RopeTable:
    return angles.cos(), angles.sin()
