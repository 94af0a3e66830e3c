"""Batch sizes at which a row's bits depend on nothing but the row.

A matrix product may round differently for another number of rows, because libraries choose their
kernels by shape; for one shape a row's result does not depend on the other rows. So batches are
padded to sizes that were seen, on this machine and for this model, to give the bits of the largest.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from blip3o.nn.quantized import QuantizedLinear

_MOST_VALUES = 2**18
"""Values of a row that a fingerprint reads of one layer; all of them could fill the memory."""


def steady_kernels() -> None:
    """Makes MKL share a product out among threads in a fixed way, which costs nothing measurable.

    Without it a row's bits may depend on its place in the batch wherever there are two threads or
    more, and pictures are made one by one. Before MKL's first product; a user's own
    MKL_CBWR is left as it is.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO")


def equal_batch_sizes(run: Callable[[Sequence[int]], Tensor], max_batch: int) -> list[int]:
    """Returns the batch sizes to use, ascending, all with the bits of the last one.

    Args:
        run: computes a batch of numbered samples, [B, ...]; sample i always has the same inputs.
        max_batch: the largest size.

    Returns:
        Sizes up to `max_batch`, which is the last; only [1] if a row's bits depend on its place
        even among batches of that size.
    """
    samples = list(range(max_batch))
    expected = run(samples)
    turned = samples[1:] + samples[:1]
    if max_batch > 1 and not torch.equal(run(turned), expected[turned]):
        return [1]
    # Every size is tried up to eight, doubled ones beyond: a probe of each would take too long.
    sizes = [size for size in range(1, max_batch) if size <= 8 or size.bit_count() == 1]
    equal = [size for size in sizes if _is_equal(run, samples, expected, size)]
    return [*equal, max_batch]


def _is_equal(
    run: Callable[[Sequence[int]], Tensor], samples: list[int], expected: Tensor, size: int
) -> bool:
    """Whether all samples have, in batches of a smaller size, the bits of the largest.

    All of them, because other sums are seldom another number: rounded to a half type, one value in
    ten thousand differs.
    """
    for end in range(len(samples), 0, -size):
        chosen = samples[max(end - size, 0) :][:size]
        if not torch.equal(run(chosen), expected[chosen]):
            return False
    return True


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
