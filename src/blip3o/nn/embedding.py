"""Embeds timesteps, which are continuous numbers, as vectors."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from blip3o.nn.linear import VectorLinear

_SINUSOID_SIZE = 256


def timestep_sinusoid(timestep: Tensor, size: int) -> Tensor:
    """Returns cosines, then sines, of timesteps, fp32 [B, size].

    Args:
        timestep: numbers from 0 to 1000 (not divided by 1000), [B].
        size: length of the result, even. The frequencies fall geometrically from 1 to almost
            1 / 10000.
    """
    half = size // 2
    steps = torch.arange(half, device=timestep.device, dtype=torch.float32)
    angles = timestep.float()[:, None] * torch.exp(-math.log(10000.0) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Embeds a timestep: sinusoid, linear layer, SiLU, linear layer.

    Args:
        hidden_size: width of the result.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear_1 = VectorLinear(_SINUSOID_SIZE, hidden_size)
        self.linear_2 = VectorLinear(hidden_size, hidden_size)

    def forward(self, timestep: Tensor) -> Tensor:
        """Returns the embeddings [B, E] of timesteps [B] from 0 to 1000."""
        sinusoid = timestep_sinusoid(timestep, _SINUSOID_SIZE).to(self.linear_1.weight.dtype)
        return self.linear_2(functional.silu(self.linear_1(sinusoid)))
