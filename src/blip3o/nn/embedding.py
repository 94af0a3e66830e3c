"""Embeds timesteps, which are continuous numbers, as vectors."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from blip3o.nn.linear import VectorLinear


def timestep_sinusoid(timestep: Tensor, size: int, max_period: float = 10000.0) -> Tensor:
    """Returns cosines, then sines, of timesteps at geometric frequencies, fp32 [B, size].

    Args:
        timestep: numbers from 0 to 1000 (not divided by 1000), [B].
        size: length of the result, even.
        max_period: frequencies go from 1 down to almost 1 / max_period.
    """
    half = size // 2
    steps = torch.arange(half, device=timestep.device, dtype=torch.float32)
    angles = timestep.float()[:, None] * torch.exp(-math.log(max_period) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Embeds a timestep: sinusoid, linear layer, SiLU, linear layer.

    Args:
        hidden_size: width of the result.
        sinusoid_size: width of the sinusoid.
    """

    def __init__(self, hidden_size: int, sinusoid_size: int = 256) -> None:
        super().__init__()
        self.sinusoid_size = sinusoid_size
        self.linear_1 = VectorLinear(sinusoid_size, hidden_size)
        self.linear_2 = VectorLinear(hidden_size, hidden_size)

    def forward(self, timestep: Tensor) -> Tensor:
        """Returns the embeddings [B, E] of timesteps [B] from 0 to 1000."""
        sinusoid = timestep_sinusoid(timestep, self.sinusoid_size)
        return self.linear_2(
            functional.silu(self.linear_1(sinusoid.to(self.linear_1.weight.dtype)))
        )
