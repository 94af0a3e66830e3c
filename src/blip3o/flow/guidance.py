"""Classifier-free guidance: dropping conditions in training, combining two answers in sampling.

The empty condition is zeros, and it comes first wherever both halves share a batch, as in the
published system.
"""

import torch
from torch import Tensor

from blip3o.flow.solver import VelocityFunction


def drop_condition(condition: Tensor, dropped: Tensor) -> Tensor:
    """Returns the condition with whole samples replaced by the empty condition, [B, ...].

    Args:
        condition: [B, ...].
        dropped: True for the samples to empty, bool [B].
    """
    return condition.masked_fill(dropped.reshape(-1, *[1] * (condition.ndim - 1)), 0.0)


def with_null(condition: Tensor) -> Tensor:
    """Returns the batch [null, condition], [2 B, ...]."""
    return torch.cat([torch.zeros_like(condition), condition])


def combine(velocities: Tensor, guidance_scale: float | Tensor) -> Tensor:
    """Returns null + scale (conditional - null), [B, ...].

    Args:
        velocities: velocities of a batch [null, condition], [2 B, ...].
        guidance_scale: 1 is the plain conditional velocity, 0 the unconditional one; a number, or
            one per sample, [B].
    """
    null, conditional = velocities.chunk(2)
    if isinstance(guidance_scale, Tensor):
        # In fp32, as a number is: rounded to bf16, 3.3 would be 3.297.
        scales = guidance_scale.reshape(-1, *[1] * (null.ndim - 1)).to(null.device, torch.float32)
        return null + (scales * (conditional - null)).to(null)
    return null + guidance_scale * (conditional - null)


def guided(velocity_fn: VelocityFunction, guidance_scale: float | Tensor) -> VelocityFunction:
    """Returns a velocity function of B samples out of one that knows the batch [null, condition].

    Args:
        velocity_fn: takes 2 B samples, the first B of which have the empty condition.
        guidance_scale: see `combine`.
    """

    def velocity(noisy: Tensor, sigma: Tensor) -> Tensor:
        both = velocity_fn(torch.cat([noisy, noisy]), torch.cat([sigma, sigma]))
        return combine(both, guidance_scale)

    return velocity
