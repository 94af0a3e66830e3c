"""The order of the samples: a pure function of the seed and the sample's global number.

Samples come in cycles. Each cycle holds every entry in proportion to its weight, in a keyed order.
So arithmetic shows that global sample i is the n-th sample of its entry. The number n gives the
epoch and, through a keyed order of the entry's records, the record. No state is kept.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from blip3o.core.config import LocalPath, component
from blip3o.core.errors import UsageError
from blip3o.core.rng import numpy_rng
from blip3o.core.types import Record
from blip3o.data.order import RecordOrder
from blip3o.data.sources import Source, SourceConfig, read_record
from blip3o.data.tasks import CONVERSATIONS

CYCLE = 1 << 16
"""Samples in a cycle. The share of each entry is exact to one part in this number."""


class Slot(NamedTuple):
    """One place in the order of the samples.

    Args:
        index: the sample's global number.
        entry: number of its entry in the mixture.
        number: ordinal of this sample within its entry, from 0.
    """

    index: int
    entry: int
    number: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureEntry:
    """A source, the task to learn from it, and its weight.

    Args:
        source: config of a source in `SOURCES`.
        task: a key of `TASKS`.
        weight: share of the samples, relative to the other entries.
        max_turns: largest number of questions per conversation, drawn anew for each sample; only
            for conversations whose questions do not build on each other. None keeps all in order.
        conversation: field that holds the conversation; None for the task's own field
            ("conversations", or "text_conversations" without images).
    """

    source: Any = component("blip3o.data.sources:SOURCES")
    task: str
    weight: float = 1.0
    max_turns: int | None = None
    conversation: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight must be above 0, got {self.weight}")
        if self.max_turns is not None and self.max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, got {self.max_turns}")
        if self.conversation is not None and self.task not in CONVERSATIONS:
            raise ValueError(f"conversation is for {', '.join(CONVERSATIONS)}, not {self.task}")
        if self.max_turns is not None and self.task == "interleaved":
            raise ValueError("max_turns is for independent questions, not for interleaved")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training data of a run.

    Args:
        mixture: sources with tasks and weights.
        max_text_tokens: longer conversations and captions count as bad samples.
        num_workers: loader processes; 0 loads in the training process. Batches do not depend on it.
        feature_cache: folder of cached image features, or its address in a store
            ("s3://bucket/features"); None computes features during training.
        bad_sample_limit: share of bad samples, in [0, 1], above which the run stops. Ten bad
            samples are always tolerated, unless the limit is 0.
    """

    mixture: tuple[MixtureEntry, ...]
    max_text_tokens: int = 256
    num_workers: int = 0
    feature_cache: LocalPath | None = None
    bad_sample_limit: float = 0.01

    def __post_init__(self) -> None:
        if not self.mixture:
            raise ValueError("mixture must have at least one entry")
        if self.max_text_tokens < 1:
            raise ValueError(f"max_text_tokens must be at least 1, got {self.max_text_tokens}")
        if self.num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {self.num_workers}")
        if not 0 <= self.bad_sample_limit <= 1:
            raise ValueError(f"bad_sample_limit must be in [0, 1], got {self.bad_sample_limit}")


class Mixture:
    """Records of several sources in their keyed order.

    Args:
        config: the sources, tasks and weights.
        seed: the run's seed.

    Raises:
        UsageError: if a source is missing, damaged or empty, or two have the same name.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        self.tasks = [entry.task for entry in config.mixture]
        built: dict[SourceConfig, Source] = {}
        for entry in config.mixture:
            if entry.source not in built:
                built[entry.source] = entry.source.build()
                if not len(built[entry.source]):
                    raise UsageError(f"data source {entry.source.name!r} holds no records")
        for name, count in Counter(source.name for source in built).items():
            if count > 1:  # the quarantine and the feature cache would mix them up
                raise UsageError(f"two data sources have the name {name!r}; rename one of them")
        self.sources = [built[entry.source] for entry in config.mixture]
        self._seed = seed
        self._orders = [
            RecordOrder(source.shard_lengths, seed, f"order/{number}")
            for number, source in enumerate(self.sources)
        ]
        # Every cycle holds an entry the same number of times. So the number of its samples before
        # any cycle is a product; no earlier cycle has to be drawn.
        self._counts = _apportion([entry.weight for entry in config.mixture], CYCLE)
        self._cycle: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def slot(self, index: int) -> Slot:
        """Returns the place of a sample in its entry, at the same cost for every index."""
        cycle, offset = divmod(index, CYCLE)
        if self._cycle is None or self._cycle[0] != cycle:
            self._cycle = (cycle, *self._draw_cycle(cycle))
        _, entries, numbers = self._cycle
        return Slot(index, int(entries[offset]), int(numbers[offset]))

    def record(self, slot: Slot, shift: int = 0) -> Record:
        """Returns the record of a sample.

        Args:
            slot: place of the sample.
            shift: number of bad records that were already tried for this sample.

        Raises:
            ValueError: if the record is damaged.
            OSError: if one of its files cannot be read.
            UsageError: if its remote store cannot be reached.
        """
        epoch, position = self.place(slot, shift)
        source = self.sources[slot.entry]
        return read_record(source, position, index=slot.index, epoch=epoch)

    def place(self, slot: Slot, shift: int) -> tuple[int, int]:
        """Returns the epoch of a sample's record and its position in its source; see `record`."""
        count = len(self.sources[slot.entry])
        epoch, within = divmod(slot.number, count)
        return epoch, self._orders[slot.entry].position(epoch, (within + shift) % count)

    def _draw_cycle(self, cycle: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns, for every sample of a cycle, its entry and its number within that entry."""
        order = numpy_rng(self._seed, "mixture", cycle).permutation(CYCLE)
        entries = np.repeat(np.arange(len(self._counts)), self._counts)[order]
        numbers = np.empty(CYCLE, dtype=np.int64)
        for entry, count in enumerate(self._counts):
            # Each earlier cycle held `count` samples of this entry; their numbers go on from there.
            numbers[entries == entry] = cycle * count + np.arange(count)
        return entries, numbers


def _apportion(weights: Sequence[float], total: int) -> list[int]:
    """Returns integers, each at least 1, proportional to the weights and with the given sum."""
    shares = np.array(weights) / sum(weights) * total
    counts = np.maximum(np.floor(shares), 1).astype(np.int64)
    while counts.sum() != total:  # correct the entry that is furthest from its share
        step = 1 if counts.sum() < total else -1
        lack = np.where((step > 0) | (counts > 1), step * (shares - counts), -np.inf)
        counts[int(lack.argmax())] += step
    return counts.tolist()
