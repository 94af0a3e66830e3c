"""Samples of a run: records in the order of the mixture, prepared, with replacements for bad ones.

A bad sample is replaced by the next record of its source's order, so that the replacement, too,
depends on nothing but the seed.
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
from blip3o.data.tasks import get_task, make_example

MAX_REPLACEMENTS = 100
"""Bad records in a row after which there is no point in going on."""
BEFORE_TRAINING = -1
"""Sample index of what was found bad before the first step."""
_REMOTE_READS = 16
"""Remote records that one process waits for at once."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BadSample:
    """Why a record could not be used.

    Args:
        source: name of its data source.
        key: its name there; "?" if not even that could be read.
        index: the global sample index it was wanted for; -1 if it was found before the first step.
        reason: one line.
        position: its place in its source; -1 in files of older versions.
    """

    source: str
    key: str
    index: int
    reason: str
    position: int = -1


def append_bad(file: Path, bad: Sequence[BadSample]) -> None:
    """Appends bad samples to a quarantine file, one JSON object a line.

    Args:
        file: created if missing.
        bad: what to append.
    """
    if not bad:
        return
    lines = "".join(json.dumps(dataclasses.asdict(one)) + "\n" for one in bad)
    with file.open("ab", buffering=0) as quarantine:
        quarantine.write(lines.encode())  # in one piece: other processes append here too


class Samples:
    """Prepared samples by slot, with replacements for bad ones.

    Args:
        config: what to learn from.
        preparer: decodes and tokenizes.
        seed: the run's seed.

    Raises:
        UsageError: as `Loader` does.
    """

    def __init__(self, config: DataConfig, preparer: Preparer, seed: int) -> None:
        self._entries = config.mixture
        roles = [get_task(entry.task).roles for entry in config.mixture]
        self.mixture = Mixture(config, seed)
        if preparer.cache is not None:
            wanted = zip(self.mixture.sources, roles, strict=True)
            for source, role in {(source, role) for source, some in wanted for role in some}:
                preparer.cache.check(source, role)
        self.preparer = preparer
        self._seed = seed

    def prepare_all(self, indices: Iterable[int], bad: list[BadSample]) -> list[Prepared]:
        """Returns samples in order. Remote records are read in parallel, local ones one by one.

        Args:
            indices: global numbers of the samples.
            bad: records that were replaced are appended here, in the order of the samples.
        """
        slots = [self.mixture.slot(index) for index in indices]
        bad_by_slot: list[list[BadSample]] = [[] for _ in slots]
        pool = ThreadPoolExecutor(_REMOTE_READS)  # starts a thread only when work is submitted
        try:
            get_sample: list[Callable[[], Prepared]] = []
            for slot, notes in zip(slots, bad_by_slot, strict=True):
                if self.mixture.sources[slot.entry].is_remote:
                    get_sample.append(pool.submit(self.prepare, slot, notes).result)
                else:
                    get_sample.append(functools.partial(self.prepare, slot, notes))
            return [get() for get in get_sample]
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, the waiting reads are dropped
            bad += itertools.chain.from_iterable(bad_by_slot)

    def prepare(self, slot: Slot, bad: list[BadSample]) -> Prepared:
        """Returns the sample of a slot of the schedule.

        Args:
            slot: which one.
            bad: what is replaced is appended here.

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
                position = self.mixture.position(slot, shift)
                bad.append(_bad(source, key, slot.index, error, position))
        raise UsageError(
            f"{MAX_REPLACEMENTS} bad samples in a row in {bad[-1].source}; the last: "
            f"{bad[-1].key}: {bad[-1].reason}"
        )

    def read(self, entry: int, position: int) -> Record:
        """Returns a record outside the schedule.

        Args:
            entry: which entry of the mixture.
            position: the record's place in the entry's source.

        Raises:
            ValueError: if the record is damaged.
            OSError: if a file of it cannot be read.
        """
        source = self.mixture.sources[entry]
        key, files, fields = source.read(position)
        return Record(
            key=key,
            index=0,
            epoch=0,
            position=position,
            source=source.name,
            files=files,
            fields=fields,
        )

    def example(self, entry: int, record: Record) -> Example:
        """Returns what an entry of the mixture makes of a record that `read` returned.

        Args:
            entry: which entry.
            record: the record.

        Raises:
            ValueError: if it does not fit the entry's task.
        """
        return self._example(entry, record, numpy_rng(self._seed, "look", record.position))

    def try_record(self, entry: int, position: int) -> BadSample | None:
        """Returns why a record cannot be used; None if it can.

        Args:
            entry: which entry of the mixture.
            position: the record's place in the entry's source.
        """
        key = "?"
        try:
            record = self.read(entry, position)
            key = record.key
            self.preparer.prepare(self.example(entry, record))
        except (ValueError, OSError) as error:
            source = self.mixture.sources[entry].name
            return _bad(source, key, BEFORE_TRAINING, error, position)
        return None

    def _example(self, number: int, record: Record, rng: np.random.Generator) -> Example:
        entry = self._entries[number]
        return make_example(
            record, entry.task, rng, conversation=entry.conversation, max_turns=entry.max_turns
        )


def _bad(source: str, key: str, index: int, error: Exception, position: int) -> BadSample:
    reason = " ".join(str(error).split())
    return BadSample(source=source, key=key, index=index, reason=reason, position=position)
