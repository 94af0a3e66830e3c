"""Classifier-free guidance: the combination of a conditional and an unconditional velocity."""

import torch
from torch import Tensor


def combine(velocities: Tensor, guidance_scale: float | Tensor) -> Tensor:
    """Returns null + scale (conditional - null), [B, ...].

    Args:
        velocities: velocities of a batch [null, conditional], [2 B, ...]. The null half comes
            first, as in the published system.
        guidance_scale: 1 is the plain conditional velocity, 0 the unconditional one; a number, or
            one per sample, [B].
    """
    null, conditional = velocities.chunk(2)
    if isinstance(guidance_scale, Tensor):
        # Kept in fp32: in bf16, a scale of 3.3 would become 3.297.
        scales = guidance_scale.reshape(-1, *[1] * (null.ndim - 1)).to(null.device, torch.float32)
        return null + (scales * (conditional - null)).to(null)
    return null + guidance_scale * (conditional - null)
