"""Batches of a run: step t is a pure function of (seed, t), however they are loaded.

A bad sample is counted, written to `quarantine.jsonl` with its reason, and replaced by the next
record of its source's order, so that the replacement, too, depends on nothing but the seed. Over
the limit the run stops: a data set that is broken should not be trained on in silence.
"""

import contextlib
import dataclasses
import itertools
import json
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.core.rng import numpy_rng
from blip3o.core.types import Batch
from blip3o.data.collate import Prepared, Preparer, collate
from blip3o.data.mixture import DataConfig, Mixture, Slot
from blip3o.data.sources import Source
from blip3o.data.tasks import PICTURES, draw_turns, get_task, with_conversation
from blip3o.imaging.load import open_image

_MAX_REPLACEMENTS = 100
"""Bad records in a row after which there is no point in going on."""
_BORNE = 10
"""Bad samples that are borne whatever share of a young run they are; and so many are named."""
_PREFETCH_STEPS = 4
_REMOTE_READS = 16
"""Remote records that one process waits for at once."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BadSample:
    """Why a record could not be used.

    Args:
        source: name of its data source.
        key: its name there; "?" if not even that could be read.
        index: the global sample index it was wanted for.
        reason: one line.
    """

    source: str
    key: str
    index: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """What a worker hands over: whole batches, because each tensor costs it a file descriptor."""

    batches: list[Batch]
    bad: list[BadSample]
    error: str | None


class Loader:
    """Iterates over the steps of a run.

    Args:
        config: what to learn from.
        preparer: decodes and tokenizes.
        seed: the run's seed.
        global_batch_size: samples a step.
        micro_batch_size: most rows of a batch.
        quarantine: file that bad samples are appended to; None keeps no list. Processes may share
            one.
        rank: which process of the run this is.
        world_size: how many share each step: process r takes samples r, r + world_size, ... of it.

    Raises:
        UsageError: if a source is missing or a task unknown, the feature cache is not of these
            sources, or the processes cannot share a step evenly.
    """

    def __init__(
        self,
        config: DataConfig,
        preparer: Preparer,
        *,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        quarantine: Path | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if global_batch_size % world_size:
            raise UsageError(
                f"train.global_batch_size {global_batch_size} cannot be shared evenly among "
                f"{world_size} processes"
            )
        self._config = config
        self._samples = _Samples(config, preparer, seed)
        self._global_batch_size = global_batch_size
        self._rank = rank
        self._world_size = world_size
        self._micro_batch_size = micro_batch_size
        self._quarantine = quarantine
        self.num_bad = 0
        self._bad_records: set[tuple[str, str, str]] = set()
        self.num_seen = 0
        for source in {source.name: source for source in self._samples.mixture.sources}.values():
            for reason, count in source.passed_over.items():
                say(f"{source.name}: passed over {count} x {reason}")

    def __call__(self, start_step: int) -> Iterator[list[Batch]]:
        """Yields, for each step from `start_step` on, its batches: rows of one task each.

        Args:
            start_step: number of steps already done.

        Raises:
            UsageError: if too many samples are bad.
        """
        workers = self._config.num_workers
        loaded = DataLoader(
            _Steps(
                self._samples,
                range(self._rank, self._global_batch_size, self._world_size),
                self._global_batch_size,
                self._micro_batch_size,
                start_step,
            ),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=_PREFETCH_STEPS if workers else None,
            generator=torch.Generator(),  # else it would draw from torch's global one
            worker_init_fn=_leave_signals_to_the_run,
        )
        steps = iter(loaded)
        try:
            for step in steps:
                self._note(step)
                yield step.batches
        finally:
            if isinstance(steps, _MultiProcessingDataLoaderIter):
                # After an error only the garbage collector would end them, five seconds each.
                steps._shutdown_workers()

    def first_pictures(self, count: int) -> list[Image.Image]:
        """Returns the first readable pictures of the sources' records, for samples.

        Args:
            count: how many, at most.
        """
        pictures: list[Image.Image] = []
        for source in self._samples.mixture.sources:
            for position in range(min(len(source), count + _MAX_REPLACEMENTS)):
                if len(pictures) == count:
                    return pictures
                try:
                    pictures.append(open_image(source.read(position)[1]["image"]))
                except (KeyError, ValueError, OSError, UsageError):
                    continue  # training is where bad samples are counted
        return pictures

    def left_out(self) -> list[str]:
        """Returns a line for each source with records that could not be used, in the whole run.

        The list of bad samples tells, which all processes of the run write, and earlier ones wrote.
        """
        if self._quarantine is None or not self._quarantine.exists():
            return []
        bad: dict[str, set[tuple[str, str]]] = {}
        for line in self._quarantine.read_text(encoding="utf-8").split("\n"):
            with contextlib.suppress(ValueError):  # the end of a line that a kill cut short
                one = BadSample(**json.loads(line))
                bad.setdefault(one.source, set()).add((one.key, one.reason * (one.key == "?")))
        return [
            f"{source.name}: {self._used(source, len(bad[source.name]))}, see {self._quarantine}"
            for source in {one.name: one for one in self._samples.mixture.sources}.values()
            if source.name in bad
        ]

    def _used(self, source: Source, num_bad: int) -> str:
        """Returns how many records of a source were left out; those not met yet may be bad, too."""
        total = sum(entry.weight for entry in self._config.mixture)
        own = sum(e.weight for e in self._config.mixture if e.source.name == source.name)
        if self.num_seen * self._world_size * own / total < len(source):
            return f"{num_bad} of {len(source)} records left out so far"
        return f"{len(source) - num_bad} of {len(source)} records used; {num_bad} left out"

    def _note(self, step: _Step) -> None:
        self.num_seen += sum(len(batch) for batch in step.batches)
        self.num_bad += len(step.bad)
        if step.bad and self._quarantine is not None:
            lines = "".join(json.dumps(dataclasses.asdict(one)) + "\n" for one in step.bad)
            with self._quarantine.open("ab", buffering=0) as file:
                file.write(lines.encode())  # in one piece: other processes append here too
        if step.error is not None:
            raise UsageError(step.error)
        self._note_records(step.bad)
        limit = self._config.bad_sample_limit
        if step.bad and self.num_bad > (max(_BORNE, limit * self.num_seen) if limit else 0):
            see = f"; all are in {self._quarantine}" if self._quarantine is not None else ""
            raise UsageError(
                f"{self.num_bad} bad among {self.num_seen} samples are more than the limit of "
                f"{limit:.1%} (data.bad_sample_limit); the last: {step.bad[-1].source} "
                f"{step.bad[-1].key}: {step.bad[-1].reason}{see}"
            )

    def _note_records(self, bad: Iterable[BadSample]) -> None:
        """Says which records are left out, once each: the first ones of the run."""
        for one in bad:
            record = (one.source, one.key, one.reason * (one.key == "?"))
            if record not in self._bad_records and len(self._bad_records) < _BORNE:
                self._bad_records.add(record)
                say(f"left out: {one.source} {one.key}: {one.reason}")


def _leave_signals_to_the_run(worker: int) -> None:
    """Makes a worker outlive Ctrl-C and a scheduler's signal: the run must save first.

    A worker that is not forked (on a Mac, or by Python 3.14) has no handler of the run's.
    """
    del worker
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


class _Samples:
    """Prepared samples by slot, with replacements for bad ones."""

    def __init__(self, config: DataConfig, preparer: Preparer, seed: int) -> None:
        self._entries = config.mixture
        self._tasks = [get_task(entry.task) for entry in config.mixture]
        self.mixture = Mixture(config, seed)
        if preparer.cache is not None:
            wanted = zip(self.mixture.sources, self.mixture.tasks, strict=True)
            for source, role in {(source, role) for source, t in wanted for role in PICTURES[t]}:
                preparer.cache.check(source, role)
        self.preparer = preparer
        self._seed = seed

    def prepare_all(self, indices: Iterable[int], bad: list[BadSample]) -> list[Prepared]:
        """Returns samples in order; remote ones are read many at once."""
        slots = [self.mixture.slot(index) for index in indices]
        remote = [slot for slot in slots if self.mixture.sources[slot.entry].is_remote]
        if not remote:
            return [self.prepare(slot, bad) for slot in slots]
        notes: dict[Slot, list[BadSample]] = {slot: [] for slot in slots}
        pool = ThreadPoolExecutor(_REMOTE_READS)
        try:
            ready = {slot: pool.submit(self.prepare, slot, notes[slot]) for slot in remote}
            return [
                ready[slot].result() if slot in ready else self.prepare(slot, notes[slot])
                for slot in slots
            ]
        finally:
            pool.shutdown(cancel_futures=True)  # after an error the rest need not wait, too
            bad += itertools.chain.from_iterable(notes.values())

    def prepare(self, slot: Slot, bad: list[BadSample]) -> Prepared:
        """Returns the sample of a slot of the schedule; appends what it replaces to `bad`."""
        for shift in range(_MAX_REPLACEMENTS):
            key = "?"
            try:
                record = self.mixture.record(slot, shift)
                key = record.key
                rng = numpy_rng(self._seed, "task", slot.index, shift)
                entry = self._entries[slot.entry]
                if entry.conversation is not None:
                    record = with_conversation(record, entry.task, entry.conversation)
                example = self._tasks[slot.entry](record, rng)
                if entry.max_turns is not None and example.messages:
                    example = draw_turns(example, entry.max_turns, rng)
                return self.preparer.prepare(example)
            except (ValueError, OSError) as error:
                source = self.mixture.sources[slot.entry].name
                reason = " ".join(str(error).split())
                bad.append(BadSample(source=source, key=key, index=slot.index, reason=reason))
        raise UsageError(
            f"{_MAX_REPLACEMENTS} bad samples in a row in {bad[-1].source}; the last: "
            f"{bad[-1].key}: {bad[-1].reason}"
        )


class _Steps(Dataset):
    """Steps by number, for PyTorch's loader."""

    def __init__(
        self,
        samples: _Samples,
        share: range,
        global_batch_size: int,
        micro_batch_size: int,
        start_step: int,
    ) -> None:
        self._samples = samples
        self._share = share
        self._global_batch_size = global_batch_size
        self._micro_batch_size = micro_batch_size
        self._start_step = start_step

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, index: int) -> _Step:
        first = (self._start_step + index) * self._global_batch_size
        bad: list[BadSample] = []
        try:
            rows = self._samples.prepare_all((first + offset for offset in self._share), bad)
        except UsageError as error:  # raised by the main process: from here it has a traceback
            return _Step(batches=[], bad=bad, error=str(error))
        return _Step(batches=self._group(rows), bad=bad, error=None)

    def _group(self, rows: list[Prepared]) -> list[Batch]:
        by_task: dict[tuple[str, bool], list[Prepared]] = {}
        for row in rows:
            # A batch has pixels or cached features, and conversations may have either.
            is_cached = any(role in row.features for role in row.example.prompt_images)
            by_task.setdefault((row.example.task, is_cached), []).append(row)
        size = self._micro_batch_size
        pad_id = self._samples.preparer.chat.tokenizer.pad_id
        batches: list[Batch] = []
        for group in by_task.values():
            if len(group) > size:  # rows of like length share a batch: less padding
                group.sort(key=lambda row: len(row.ids))
            batches += [
                collate(group[start : start + size], pad_id) for start in range(0, len(group), size)
            ]
        return batches
