"""Prepared samples of a run in the order of the mixture, with replacements for bad ones.

A bad sample is replaced by the next record in its source's order, so the replacement depends only
on the seed as well.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from blip3o.core.errors import UsageError
from blip3o.core.rng import numpy_rng
from blip3o.core.types import Example, Record
from blip3o.data.collate import Prepared, Preparer
from blip3o.data.mixture import DataConfig, Mixture, Slot
from blip3o.data.sources import read_record
from blip3o.data.sources.files import REMOTE_READS
from blip3o.data.tasks import get_task, make_example

MAX_REPLACEMENTS = 100
"""The run stops after this many bad records in a row."""
BEFORE_TRAINING = -1
"""Sample index of records that were found bad before the first step."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BadSample:
    """A record that could not be used.

    Args:
        source: name of its data source.
        key: name of the record there; "?" if even the name could not be read.
        index: global index of the sample it was read for; -1 if found before the first step.
        reason: the cause, in one line.
        position: position in its source; -1 in files of older versions.
    """

    source: str
    key: str
    index: int
    reason: str
    position: int = -1


def append_bad(file: Path, bad: Sequence[BadSample]) -> None:
    """Appends bad samples to a quarantine file, one JSON object per line."""
    if not bad:
        return
    lines = "".join(json.dumps(dataclasses.asdict(one)) + "\n" for one in bad)
    with file.open("ab", buffering=0) as quarantine:
        quarantine.write(lines.encode())  # in one call, because other processes append here too


class Samples:
    """Prepared samples by slot, with replacements for bad ones.

    Args:
        config: the training data.
        preparer: decodes images and tokenizes text.
        seed: the run's seed.

    Raises:
        UsageError: in the same cases as `Loader`.
    """

    def __init__(self, config: DataConfig, preparer: Preparer, seed: int) -> None:
        self._entries = config.mixture
        roles = [get_task(entry.task).roles for entry in config.mixture]
        self.mixture = Mixture(config, seed)
        if preparer.cache is not None:
            wanted = zip(self.mixture.sources, roles, strict=True)
            for source, role in {(source, role) for source, some in wanted for role in some}:
                preparer.cache.open(source, role)
        self.preparer = preparer
        self._seed = seed

    def prepare_all(self, indices: Iterable[int], bad: list[BadSample]) -> list[Prepared]:
        """Returns samples in order. Remote records and features are read in parallel.

        Args:
            indices: global numbers of the samples.
            bad: records that were replaced are appended here, in the order of the samples.
        """
        slots = [self.mixture.slot(index) for index in indices]
        bad_by_slot: list[list[BadSample]] = [[] for _ in slots]
        cache = self.preparer.cache
        has_remote_cache = cache is not None and cache.is_remote
        pool = ThreadPoolExecutor(REMOTE_READS)  # starts a thread only when work is submitted
        try:
            get_sample: list[Callable[[], Prepared]] = []
            for slot, notes in zip(slots, bad_by_slot, strict=True):
                if self.mixture.sources[slot.entry].is_remote or has_remote_cache:
                    get_sample.append(pool.submit(self.prepare, slot, notes).result)
                else:
                    get_sample.append(functools.partial(self.prepare, slot, notes))
            return [get() for get in get_sample]
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, the waiting reads are dropped
            bad += itertools.chain.from_iterable(bad_by_slot)

    def prepare(self, slot: Slot, bad: list[BadSample]) -> Prepared:
        """Returns the sample of a slot; records that were replaced are appended to `bad`.

        Raises:
            UsageError: if too many records in a row are bad.
        """
        for shift in range(MAX_REPLACEMENTS):
            key = "?"
            try:
                record = self.mixture.record(slot, shift)
                key = record.key
                rng = numpy_rng(self._seed, "task", slot.index, shift)
                return self.preparer.prepare(self._example(slot.entry, record, rng))
            except (ValueError, OSError) as error:
                source = self.mixture.sources[slot.entry].name
                _, position = self.mixture.place(slot, shift)
                bad.append(_bad(source, key, slot.index, error, position))
        raise UsageError(
            f"{MAX_REPLACEMENTS} bad samples in a row in {bad[-1].source}; the last: "
            f"{bad[-1].key}: {bad[-1].reason}"
        )

    def try_record(self, entry: int, position: int) -> Example | BadSample:
        """Returns the example that an entry's task makes from a record, or why it cannot be used.

        Args:
            entry: number of the entry in the mixture.
            position: position of the record in the entry's source.
        """
        source = self.mixture.sources[entry]
        key = "?"
        try:
            record = read_record(source, position)
            key = record.key
            example = self._example(entry, record, numpy_rng(self._seed, "look", position))
            self.preparer.prepare(example)
        except (ValueError, OSError) as error:
            return _bad(source.name, key, BEFORE_TRAINING, error, position)
        return example

    def _example(self, number: int, record: Record, rng: np.random.Generator) -> Example:
        entry = self._entries[number]
        return make_example(
            record, entry.task, rng, conversation=entry.conversation, max_turns=entry.max_turns
        )


def _bad(source: str, key: str, index: int, error: Exception, position: int) -> BadSample:
    reason = " ".join(str(error).split())
    return BadSample(source=source, key=key, index=index, reason=reason, position=position)
