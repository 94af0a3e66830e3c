"""Batch sizes and positions at which the bits of a row do not depend on the rest of its batch.

A matrix product may round differently for another number of rows, because libraries choose their
kernels by shape. For one shape, the result of a row does not depend on the other rows. So batches
are padded to sizes that give the same bits as the largest size on this machine, for this model.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from blip3o.nn.quantized import QuantizedLinear

_MOST_VALUES = 2**18
"""Largest number of values per row and layer that a fingerprint reads, to limit the memory."""


def steady_kernels() -> None:
    """Makes MKL divide a product among threads in a fixed way; the cost is not measurable.

    Without it, the bits of a row may depend on its place in the batch when there are two threads
    or more, and images are generated one by one. Call it before MKL's first product. A value of
    MKL_CBWR that the user has set stays.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO")


def equal_batch_sizes(run: Callable[[Sequence[int]], Tensor], max_batch: int) -> list[int]:
    """Returns the batch sizes to use, ascending; all give the same bits as `max_batch`, the last.

    Args:
        run: computes a batch of numbered samples, [B, ...]; sample i always has the same inputs.
        max_batch: the largest size.

    Returns:
        Sizes up to `max_batch`. Only [1] if the bits of a row depend on its place even in batches
        of the largest size.
    """
    samples = list(range(max_batch))
    expected = run(samples)
    turned = samples[1:] + samples[:1]
    if max_batch > 1 and not torch.equal(run(turned), expected[turned]):
        return [1]
    # All sizes up to eight, then powers of two: to test every size would take too long.
    sizes = [size for size in range(1, max_batch) if size <= 8 or size.bit_count() == 1]
    equal = [size for size in sizes if _is_equal(run, samples, expected, size)]
    return [*equal, max_batch]


def _is_equal(
    run: Callable[[Sequence[int]], Tensor], samples: list[int], expected: Tensor, size: int
) -> bool:
    """Returns whether batches of a size give every sample the bits of the largest size."""
    # All samples are needed: rounded to a half type, only one value in ten thousand differs.
    for end in range(len(samples), 0, -size):
        chosen = samples[max(end - size, 0) :][:size]
        if not torch.equal(run(chosen), expected[chosen]):
            return False
    return True


@contextmanager
def fingerprints(
    module: nn.Module, num_rows: int, *, axis: Literal[0, 1] = 0
) -> Iterator[list[Tensor]]:
    """Collects fingerprints of the rows of a batch at the linear layers and convolutions inside.

    The output of a network hides most differences of its layers, above all in half types; another
    batch could show them. Layers whose inputs are not tokens or pixels are skipped.

    Args:
        module: run inside the context, with batches [B, ...], or [2 B, ...] under guidance.
        num_rows: B.
        axis: 1 for a module whose batches are [1, B, ...], one token of each row.

    Yields:
        A list to which each layer adds fingerprints [B, ...] as it runs; rows with equal
        fingerprints have equal bits.
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
    """Returns whole numbers that represent the bits of each row, [B, 1] or [B, 2].

    They are sums of whole numbers, so the order of summation cannot change them.

    Args:
        values: [B, ...], or [2 B, ...].
        num_rows: B.
    """
    rows = values.flatten(1)
    rows = rows[:, :: rows.shape[1] // _MOST_VALUES | 1].contiguous()
    bits = rows.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()])
    weights = 2 * torch.arange(bits.shape[1], device=bits.device) + 1
    return (bits * weights).sum(1).unflatten(0, (-1, num_rows)).T
