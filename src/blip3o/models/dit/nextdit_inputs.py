"""What NextDiT takes in: shapes that fit together, timesteps, grids."""

import math
from typing import TYPE_CHECKING

from torch import Tensor

from blip3o.flow.sigmas import NUM_TIMESTEPS

if TYPE_CHECKING:
    from blip3o.models.dit.nextdit import NextDiTConfig


def check_shapes(
    config: "NextDiTConfig",
    noisy: Tensor | None,
    condition: Tensor,
    reference: Tensor | None,
    grid: tuple[int, int],
) -> None:
    """Checks that inputs fit a network.

    Args:
        config: the network's sizes.
        noisy: features on the path, [B, N, C].
        condition: the backbone's query states, [B, Q, D].
        reference: features of an image to edit, [B, N, reference_channels].
        grid: rows and columns of the N tokens.

    Raises:
        ValueError: if a shape does not fit, naming both sides.
    """
    for features in (noisy, reference):
        if features is not None and features.shape[1] != grid[0] * grid[1]:
            raise ValueError(
                f"{features.shape[1]} feature tokens do not fill a grid of {grid[0]} x {grid[1]}"
            )
    if noisy is not None and noisy.shape[-1] != config.in_channels:
        raise ValueError(
            f"the features have {noisy.shape[-1]} channels, the DiT {config.in_channels}"
        )
    if condition.shape[-1] != config.condition_size:
        raise ValueError(
            f"the condition is {condition.shape[-1]} wide, the DiT takes {config.condition_size}"
        )
    if reference is not None and reference.shape[-1] != config.reference_channels:
        raise ValueError(
            f"the reference has {reference.shape[-1]} channels, the DiT takes "
            f"{config.reference_channels}"
        )


def timesteps(sigma: Tensor, truncate: bool) -> Tensor:
    """Returns 1000 * sigma of noise levels in [0, 1], rounded down if asked for."""
    timestep = NUM_TIMESTEPS * sigma.float()
    return timestep.floor() if truncate else timestep


def square_grid(num_tokens: int) -> tuple[int, int]:
    """Returns the rows and columns of a square grid of tokens.

    Raises:
        ValueError: if they are no square.
    """
    side = math.isqrt(num_tokens)
    if side**2 != num_tokens:
        raise ValueError(
            f"{num_tokens} feature tokens are no square grid: give grid=(rows, columns)"
        )
    return (side, side)
