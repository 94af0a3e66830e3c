"""A linear layer whose result for a row does not depend on the number of rows."""

import torch
from torch import Tensor, nn

_FEWEST_ROWS = 4
"""CPU libraries (MKL on x86) use separate kernels for products of fewer rows."""


class VectorLinear(nn.Linear):
    """A linear layer for inputs of one vector per sample: timesteps, conditions, modulations.

    A small batch has few such rows, and CPU libraries round products of few rows differently from
    products of many. Without gradients, few rows are therefore padded: an image generated alone
    equals the same image generated in a batch, bit for bit.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Returns [..., out_features] of vectors [..., in_features]."""
        rows = input.shape[:-1].numel()
        if torch.is_grad_enabled() or input.device.type != "cpu" or rows >= _FEWEST_ROWS:
            return super().forward(input)
        flat = input.reshape(rows, input.shape[-1])
        padded = torch.cat([flat, flat.new_zeros(_FEWEST_ROWS - rows, flat.shape[1])])
        return super().forward(padded)[:rows].reshape(*input.shape[:-1], self.out_features)
