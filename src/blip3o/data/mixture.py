"""Which sample comes when: a pure function of the seed and the sample's global number.

Global sample i belongs to an entry by a keyed draw and is that entry's n-th sample; n decides the
epoch and, through a keyed permutation of the entry's records, the record. Nothing is remembered
but how often each entry was drawn before, which is counted anew from the seed when resuming.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3o.core.config import component
from blip3o.core.errors import UsageError
from blip3o.core.rng import numpy_rng
from blip3o.core.types import Record
from blip3o.data.sources import Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureEntry:
    """A source, what is learned from it, and how often.

    Args:
        source: a config out of `SOURCES`.
        task: a name out of `TASKS`.
        weight: share of the samples, relative to the other entries.
        max_turns: most questions of a conversation, drawn anew each time; only for conversations
            whose questions do not build on each other. None takes all in order.
    """

    source: Any = component("blip3o.data.sources:SOURCES")
    task: str
    weight: float = 1.0
    max_turns: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight must be above 0, got {self.weight}")
        if self.max_turns is not None and self.max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, got {self.max_turns}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a run learns from.

    Args:
        mixture: sources with tasks and weights.
        image_px: side of the pictures the model takes.
        max_text_tokens: longer conversations and captions count as bad samples.
        num_workers: loader processes; 0 loads in the training process. Changes no batch.
        feature_cache: folder of cached image features; None computes features online.
        bad_sample_limit: share of bad samples, in [0, 1], over which the run stops; the first ten
            are borne whatever their share is, unless it is 0.
    """

    mixture: tuple[MixtureEntry, ...]
    image_px: int
    max_text_tokens: int = 256
    num_workers: int = 0
    feature_cache: str | None = None
    bad_sample_limit: float = 0.01

    def __post_init__(self) -> None:
        if not self.mixture:
            raise ValueError("mixture must have at least one entry")
        if self.image_px < 1 or self.max_text_tokens < 1:
            raise ValueError("image_px and max_text_tokens must be at least 1")
        if self.num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {self.num_workers}")
        if not 0 <= self.bad_sample_limit <= 1:
            raise ValueError(f"bad_sample_limit must be in [0, 1], got {self.bad_sample_limit}")


class Mixture:
    """Records of several sources in their keyed order.

    Args:
        config: the entries.
        seed: the run's seed.

    Raises:
        UsageError: if a source is missing, damaged or empty, or two have the same name.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        self.tasks = [entry.task for entry in config.mixture]
        built: dict[Any, Source] = {}
        for entry in config.mixture:
            if entry.source not in built:
                built[entry.source] = entry.source.build()
                if not len(built[entry.source]):
                    raise UsageError(f"data source {entry.source.name!r} holds no record")
        names = [config.name for config in built]
        for name in names:
            if names.count(name) > 1:  # the quarantine and the feature cache could not tell them
                raise UsageError(f"two data sources have the name {name!r}; give each its own")
        self.sources = [built[entry.source] for entry in config.mixture]
        self._seed = seed
        weights = np.array([entry.weight for entry in config.mixture])
        self._edges = np.cumsum(weights / weights.sum())
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}

    def schedule(self, start: int) -> Iterator[tuple[int, int, int]]:
        """Yields (global number, entry, number within the entry) from a global number on."""
        drawn = np.zeros(len(self.tasks), dtype=np.int64)
        block = 4096
        for number in range(start // block):
            drawn += np.bincount(self._entries_of_block(number, block), minlength=len(drawn))
        for number in range(start // block, 2**62):
            for offset, entry in enumerate(self._entries_of_block(number, block).tolist()):
                index = number * block + offset
                if index >= start:
                    yield index, entry, int(drawn[entry])
                drawn[entry] += 1

    def record(self, index: int, entry: int, number: int, shift: int = 0) -> Record:
        """Returns the record of one sample.

        Args:
            index: the global number.
            entry: which entry.
            number: the how-maniest sample of that entry it is.
            shift: 0, or how many bad records were met before in its place.
        """
        source = self.sources[entry]
        epoch, within = divmod(number, len(source))
        position = int(self._order(entry, epoch)[(within + shift) % len(source)])
        key, files, fields = source.read(position)
        return Record(
            key=key,
            index=index,
            epoch=epoch,
            position=position,
            source=source.name,
            files=files,
            fields=fields,
        )

    def _entries_of_block(self, number: int, block: int) -> NDArray[np.int64]:
        draws = numpy_rng(self._seed, "mixture", number).random(block)
        return np.searchsorted(self._edges, draws, side="right").clip(max=len(self.tasks) - 1)

    def _order(self, entry: int, epoch: int) -> NDArray[np.int64]:
        if (entry, epoch) not in self._orders:
            for old in [key for key in self._orders if key[0] == entry and key[1] < epoch - 1]:
                del self._orders[old]
            rng = numpy_rng(self._seed, f"order/{entry}", epoch)
            self._orders[entry, epoch] = rng.permutation(len(self.sources[entry]))
        return self._orders[entry, epoch]
