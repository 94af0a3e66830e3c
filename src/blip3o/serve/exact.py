"""Batch sizes at which a row's bits depend on nothing but the row.

A matrix product may round differently for another number of rows, because libraries choose their
kernels by shape; for one shape a row's result does not depend on the other rows. So batches are
padded to sizes that were seen, on this machine and for this model, to give the bits of the largest.
"""

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def steady_kernels() -> None:
    """Makes MKL share a product out among threads in a fixed way, which costs nothing measurable.

    Without it a row's bits may depend on its place in the batch wherever there are two threads or
    more, and images are made one by one. Before MKL's first product; a user's own
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
