"""Rotary position embedding of image grids, with rows and columns as its two axes.

A table is a pair (cos, sin) of fp32 angles [..., K / 2] and rotates the channel pairs (2k, 2k + 1)
of a head. Tables are computed on demand and never stored, so a module built on the meta device has
nothing to restore.
"""

import torch
from torch import Tensor

RopeTable = tuple[Tensor, Tensor]
"""Cosines and sines of the rotation angles, fp32, [..., K / 2] each."""


def grid_rope_table(
    rows: int,
    columns: int,
    head_dim: int,
    theta: float = 10000.0,
    device: torch.device | None = None,
) -> RopeTable:
    """Returns the table of a grid in row-major order, [rows * columns, K / 2].

    Pair 2j rotates with the row and pair 2j + 1 with the column, both at theta^(-4j / K).

    Args:
        rows: number of rows.
        columns: number of columns.
        head_dim: width of a head (K), a multiple of 4.
        theta: base of the frequencies.
        device: device of the table.

    Reference:
        Lumina-Next's 2-D rotary embedding; parity family `dit`.
    """
    row = _angles(torch.arange(rows, device=device), head_dim // 4, theta)
    column = _angles(torch.arange(columns, device=device), head_dim // 4, theta)
    shape = (rows, columns, head_dim // 4)
    angles = torch.stack([row[:, None].expand(shape), column[None].expand(shape)], dim=-1)
    angles = angles.reshape(rows * columns, head_dim // 2)
    return angles.cos(), angles.sin()


def rotate_neighbors(values: Tensor, table: RopeTable) -> Tensor:
    """Returns rotated queries or keys, with channel pairs (2k, 2k + 1); computed in fp32.

    Args:
        values: [..., K].
        table: angles, broadcastable to [..., K / 2].
    """
    pairs = values.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # inductor fuses real arithmetic but not complex numbers
        return _rotate_pairs(pairs, table).flatten(-2).to(values.dtype)
    rotated = torch.view_as_complex(pairs) * torch.complex(*table)
    return torch.view_as_real(rotated).flatten(-2).to(values.dtype)


def _rotate_pairs(pairs: Tensor, table: RopeTable) -> Tensor:
    cos, sin = table
    first, second = pairs.unbind(-1)
    return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _angles(positions: Tensor, num_pairs: int, theta: float) -> Tensor:
    exponents = torch.arange(num_pairs, device=positions.device, dtype=torch.float32) / num_pairs
    return positions.float().unsqueeze(-1) * theta**-exponents
