"""A linear layer whose rows do not depend on how many there are."""

import torch
from torch import Tensor, nn

_FEWEST_ROWS = 4
"""Products of fewer rows go through kernels of their own (MKL on x86)."""


class VectorLinear(nn.Linear):
    """A linear layer for what is one vector a sample: timesteps, conditions, modulations.

    A small batch holds few such rows, and CPU libraries round products of few rows otherwise than
    those of many. Without gradients they are padded, so that an image made alone has the bits of
    the same image made in a batch.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Returns [..., out_features] of vectors [..., in_features]."""
        rows = input.shape[:-1].numel()
        if torch.is_grad_enabled() or input.device.type != "cpu" or rows >= _FEWEST_ROWS:
            return super().forward(input)
        flat = input.reshape(rows, input.shape[-1])
        padded = torch.cat([flat, flat.new_zeros(_FEWEST_ROWS - rows, flat.shape[1])])
        return super().forward(padded)[:rows].reshape(*input.shape[:-1], self.out_features)
