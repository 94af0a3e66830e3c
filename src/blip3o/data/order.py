"""The shuffled order of one source's records, without a list of all records.

Shards are cut into blocks of neighboring records. An epoch takes the blocks in a keyed order and
shuffles the records of `GROUP_BLOCKS` blocks at a time. So at any moment only that many contiguous
parts of the data set are read, which is fast on disks and networks. Memory grows with the number
of blocks, not with the number of records.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from blip3o.core.rng import numpy_rng

K = TypeVar("K")
V = TypeVar("V")

BLOCK_RECORDS = 256
GROUP_BLOCKS = 64
"""Thus 16,384 records from 64 places are shuffled together, and smaller sources completely."""
_KEPT = 4
"""Number of epochs, and of groups of blocks, whose order is kept in memory."""


class RecordOrder:
    """Every record once per epoch, in a different order each time.

    Args:
        shard_lengths: number of records in each shard.
        seed: the run's seed.
        stream: name of the random stream; differs between the orders of a run.
        block_records: maximum number of records in a block.
        group_blocks: number of blocks shuffled together.
    """

    def __init__(
        self,
        shard_lengths: Sequence[int],
        seed: int,
        stream: str,
        *,
        block_records: int = BLOCK_RECORDS,
        group_blocks: int = GROUP_BLOCKS,
    ) -> None:
        self._seed = seed
        self._stream = stream
        self._group_blocks = group_blocks
        ends = np.cumsum(shard_lengths, dtype=np.int64)
        starts = [
            np.arange(end - length, end, block_records)
            for end, length in zip(ends.tolist(), shard_lengths, strict=True)
        ]
        self._starts: NDArray[np.int64] = np.concatenate(starts)
        self._lengths = np.diff(self._starts, append=ends[-1])
        self._epochs: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._groups: dict[tuple[int, int], NDArray[np.int64]] = {}

    def position(self, epoch: int, number: int) -> int:
        """Returns the position of record `number` (from 0) in the order of an epoch."""
        blocks, group_ends = _keep(self._epochs, epoch, functools.partial(self._epoch, epoch))
        group = int(np.searchsorted(group_ends, number, side="right"))
        make = functools.partial(self._group, epoch, group, blocks)
        members = _keep(self._groups, (epoch, group), make)
        return int(members[number - (int(group_ends[group - 1]) if group else 0)])

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the order of the blocks, and how many records precede the end of each group."""
        blocks = numpy_rng(self._seed, self._stream, epoch).permutation(len(self._starts))
        ends = np.cumsum(self._lengths[blocks])
        last = np.arange(self._group_blocks, len(blocks) + self._group_blocks, self._group_blocks)
        return blocks, ends[np.minimum(last, len(blocks)) - 1]

    def _group(self, epoch: int, group: int, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        chosen = blocks[group * self._group_blocks : (group + 1) * self._group_blocks]
        records = np.concatenate(
            [self._starts[block] + np.arange(self._lengths[block]) for block in chosen]
        )
        return numpy_rng(self._seed, f"{self._stream}/mix", epoch, group).permutation(records)


def _keep(kept: dict[K, V], key: K, make: Callable[[], V]) -> V:
    """Returns the cached value of a key, computed if missing; drops the oldest values.

    Several threads read remote records, so a value may be dropped at any time by another thread.
    """
    value = kept.get(key)
    if value is None:
        value = kept[key] = make()
        for old in list(kept)[:-_KEPT]:
            kept.pop(old, None)
    return value
