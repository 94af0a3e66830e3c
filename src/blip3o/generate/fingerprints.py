"""Whether rows of two batches had the same bits, everywhere inside a network."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from blip3o.nn.quantized import QuantizedLinear

_MOST_VALUES = 2**18
"""Values of a row that a fingerprint reads of one layer; all of them could fill the memory."""


@contextmanager
def fingerprints(
    module: nn.Module, num_rows: int, *, axis: Literal[0, 1] = 0
) -> Iterator[list[Tensor]]:
    """Collects what the products and convolutions inside a module make of each row of a batch.

    The result of a network hides most differences of its layers, above all in half types; a batch
    of another time would not. Products of something else than tokens or pixels are passed over.

    Args:
        module: run inside the context, with batches [B, ...], or [2 B, ...] where it is guided.
        num_rows: B.
        axis: 1 for a module whose batches are [1, B, ...], a token of each row.

    Yields:
        A list that grows by the whole numbers [B, ...] of each product; rows with the same numbers
        had the same bits.
    """
    seen: list[Tensor] = []

    def note(layer: nn.Module, inputs: object, output: Tensor) -> None:
        del layer, inputs
        if output.ndim < 3 or output.shape[1] < 2 or output.shape[axis] % num_rows:
            return
        if output.shape[axis] <= 2 * num_rows:
            seen.append(fingerprint(output.movedim(axis, 0), num_rows))

    kinds = (nn.Linear, nn.Conv2d, QuantizedLinear)
    hooks = [
        layer.register_forward_hook(note) for layer in module.modules() if isinstance(layer, kinds)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def fingerprint(values: Tensor, num_rows: int) -> Tensor:
    """Returns whole numbers for the bits of each row, [B, 1] or [B, 2]; their sums have no order.

    Args:
        values: [B, ...], or [2 B, ...].
        num_rows: B.
    """
    rows = values.flatten(1)
    rows = rows[:, :: rows.shape[1] // _MOST_VALUES | 1].contiguous()
    bits = rows.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()])
    weights = 2 * torch.arange(bits.shape[1], device=bits.device) + 1
    return (bits * weights).sum(1).unflatten(0, (-1, num_rows)).T
