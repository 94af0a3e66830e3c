"""Rotary position embedding of sequences, and of image grids with rows and columns as two axes.

A table is a pair (cos, sin) of fp32 angles and rotates pairs of a head's channels. Tables are
computed on demand and never stored, so a module built on the meta device has nothing to restore.
"""

import torch
from torch import Tensor

RopeTable = tuple[Tensor, Tensor]
"""Cosines and sines of the rotation angles, fp32, [..., pairs] each."""


def sequence_rope_table(positions: Tensor, rotary_dim: int, theta: float) -> RopeTable:
    """Returns the table of positions in a sequence, [..., R / 2]; pair k turns at theta^(-2k / R).

    Args:
        positions: positions of tokens, [...].
        rotary_dim: number of a head's channels that rotate (R), even.
        theta: base of the frequencies.
    """
    angles = _angles(positions, rotary_dim // 2, theta)
    return angles.cos(), angles.sin()


def rotate_halves(values: Tensor, table: RopeTable) -> Tensor:
    """Returns rotated queries or keys, with channel pairs (k, k + R / 2) of the first R channels.

    The other channels stay as they are. Computed in fp32.

    Args:
        values: [..., K].
        table: angles, broadcastable to [..., R / 2].
    """
    cos, sin = table
    half = cos.shape[-1]
    first, second, rest = values.split([half, half, values.shape[-1] - 2 * half], dim=-1)
    parts = [first * cos - second * sin, second * cos + first * sin, rest]
    return torch.cat(parts, dim=-1).to(values.dtype)


def grid_rope_table(
    rows: int, columns: int, head_dim: int, device: torch.device | None = None
) -> RopeTable:
    """Returns the table of a grid in row-major order, [rows * columns, K / 2].

    Pair 2j rotates with the row and pair 2j + 1 with the column, both at 10000^(-4j / K).

    Args:
        rows: number of rows.
        columns: number of columns.
        head_dim: width of a head (K), a multiple of 4.
        device: device of the table.

    Reference:
        Lumina-Next's 2-D rotary embedding; parity family `dit`.
    """
    row = _angles(torch.arange(rows, device=device), head_dim // 4)
    column = _angles(torch.arange(columns, device=device), head_dim // 4)
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
    cos, sin = table
    if torch.compiler.is_compiling():  # inductor fuses real arithmetic but not complex numbers
        first, second = pairs.unbind(-1)
        rotated = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)
    else:
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return rotated.flatten(-2).to(values.dtype)


def _angles(positions: Tensor, num_pairs: int, theta: float = 10000.0) -> Tensor:
    exponents = torch.arange(num_pairs, device=positions.device, dtype=torch.float32) / num_pairs
    return positions.float().unsqueeze(-1) * theta**-exponents
