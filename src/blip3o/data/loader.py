"""Batches of a run. Step t is a pure function of (seed, t), however the batches are loaded.

A bad sample is counted, written to `quarantine.jsonl` with its reason, and replaced, see
`samples`. Above the limit the run stops instead of training silently on a broken data set.
"""

import dataclasses
import signal
import time
from collections.abc import Generator, Iterable
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.core.types import Batch, Example
from blip3o.data.collate import Prepared, Preparer, collate
from blip3o.data.mixture import DataConfig
from blip3o.data.samples import MAX_REPLACEMENTS, BadSample, Samples, append_bad
from blip3o.data.sources import Source
from blip3o.data.tasks import get_task
from blip3o.imaging.load import open_image

_ALWAYS_ALLOWED = 10
"""Number of bad samples that never stop a run, unless the limit is 0."""
_MAX_LOGGED = 10
"""Maximum number of bad records that are logged."""
_PREFETCH_STEPS = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """Result of a worker: whole batches, because every tensor it sends costs a file descriptor."""

    batches: list[Batch]
    bad: list[BadSample]
    error: str | None


class Loader:
    """Iterates over the steps of a run.

    Args:
        config: the training data.
        preparer: decodes images and tokenizes text.
        seed: the run's seed.
        global_batch_size: samples per step, over all processes.
        micro_batch_size: maximum number of rows in a batch.
        quarantine: file that bad samples are appended to; several processes may share one. None
            keeps no list.
        rank: number of this process in the run.
        world_size: number of processes; process r takes samples r, r + world_size, ... of a step.

    Raises:
        UsageError: if a source is missing, a task is unknown, the feature cache belongs to other
            data, or the processes cannot share a step evenly.
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
        self._samples = Samples(config, preparer, seed)
        self._global_batch_size = global_batch_size
        self._rank = rank
        self._world_size = world_size
        self._micro_batch_size = micro_batch_size
        self._quarantine = quarantine
        self._known: set[tuple[str, int]] = set()
        self.num_bad = 0
        self._bad_records: set[tuple[str, str, str]] = set()
        self.num_seen = 0
        for source in {source.name: source for source in self._samples.mixture.sources}.values():
            for reason, count in source.passed_over.items():
                say(f"{source.name}: passed over {count} x {reason}")

    @property
    def sources(self) -> list[Source]:
        """The open source of each entry of the mixture."""
        return self._samples.mixture.sources

    def __call__(self, start_step: int) -> Generator[list[Batch]]:
        """Yields the batches of each step from `start_step` on; the rows of a batch share a task.

        Raises:
            UsageError: if too many samples are bad.
        """
        workers = self._config.num_workers
        loaded = DataLoader(
            _Steps(
                samples=self._samples,
                share=range(self._rank, self._global_batch_size, self._world_size),
                global_batch_size=self._global_batch_size,
                micro_batch_size=self._micro_batch_size,
                start_step=start_step,
            ),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=_PREFETCH_STEPS if workers else None,
            generator=torch.Generator(),  # else it would draw from torch's global one
            worker_init_fn=_ignore_signals,
        )
        steps = iter(loaded)
        try:
            for step in steps:
                self._count(step)
                yield step.batches
        finally:
            if isinstance(steps, _MultiProcessingDataLoaderIter):
                # After an error, only the garbage collector would end the workers, 5 s each.
                steps._shutdown_workers()

    def first_images(self, count: int) -> list[Image.Image]:
        """Returns the first readable images of the sources, for sample images of a run."""
        images: list[Image.Image] = []
        for source in self._samples.mixture.sources:
            for position in range(min(len(source), count + MAX_REPLACEMENTS)):
                if len(images) == count:
                    return images
                try:
                    images.append(open_image(source.read(position)[1]["image"]))
                except (KeyError, ValueError, OSError, UsageError):
                    continue  # bad samples are counted during training
        return images

    def first_captions(self, count: int) -> list[str]:
        """Returns the first different captions of text-to-image data, for a run's sample images."""
        captions: dict[str, None] = {}
        for entry, source in enumerate(self.sources):
            task = get_task(self._config.mixture[entry].task)
            is_drawn = task.target == "image" and task.draws_caption
            for position in range(min(len(source), count + MAX_REPLACEMENTS) if is_drawn else 0):
                if len(captions) == count:
                    break
                found = self._samples.try_record(entry, position)
                if isinstance(found, Example):  # bad samples are counted during training
                    captions[found.messages[-1].text] = None
        return list(captions)

    def find_bad(self, most_records: int, most_seconds: float) -> list[BadSample]:
        """Returns the bad records of small local sources, before the first step.

        Args:
            most_records: larger sources are skipped.
            most_seconds: time limit; records not checked by then are met during training.
        """
        end = time.monotonic() + most_seconds
        found: dict[tuple[str, int], BadSample] = {}
        for entry, source in enumerate(self.sources):
            is_small = not source.is_remote and len(source) <= most_records
            for position in range(len(source)) if is_small else ():
                if time.monotonic() > end:
                    return list(found.values())
                bad = self._samples.try_record(entry, position)
                if isinstance(bad, BadSample):
                    found.setdefault((bad.source, position), bad)
        return list(found.values())

    def stop_counting(self, known: Iterable[BadSample]) -> None:
        """Stops counting known bad records; they are still replaced.

        Args:
            known: bad records from `find_bad`. If a source has more of them than
                `data.bad_sample_limit` allows, its bad records are still counted.
        """
        by_source: dict[str, list[BadSample]] = {}
        for one in known:
            by_source.setdefault(one.source, []).append(one)
        for source in self.sources:
            bad = by_source.get(source.name, [])
            if len(bad) <= self._most_bad(len(source)):
                self._known |= {(one.source, one.position) for one in bad}

    def _most_bad(self, count: int) -> float:
        limit = self._config.bad_sample_limit
        return max(_ALWAYS_ALLOWED, limit * count) if limit else 0

    def _count(self, step: _Step) -> None:
        bad = [one for one in step.bad if (one.source, one.position) not in self._known]
        self.num_seen += sum(len(batch) for batch in step.batches)
        self.num_bad += len(bad)
        if bad and self._quarantine is not None:
            append_bad(self._quarantine, bad)
        if step.error is not None:
            raise UsageError(step.error)
        self._log_records(step.bad)
        if bad and self.num_bad > self._most_bad(self.num_seen):
            see = f"; all are in {self._quarantine}" if self._quarantine is not None else ""
            raise UsageError(
                f"{self.num_bad} bad among {self.num_seen} samples are more than the limit of "
                f"{self._config.bad_sample_limit:.1%} (data.bad_sample_limit); the last: "
                f"{bad[-1].source} {bad[-1].key}: {bad[-1].reason}{see}"
            )

    def _log_records(self, bad: Iterable[BadSample]) -> None:
        """Logs the first records that are left out, each once."""
        for one in bad:
            record = (one.source, one.key, one.reason * (one.key == "?"))
            if record not in self._bad_records and len(self._bad_records) < _MAX_LOGGED:
                self._bad_records.add(record)
                say(f"left out: {one.source} {one.key}: {one.reason}")


def _ignore_signals(worker: int) -> None:
    """Makes a worker ignore Ctrl-C and the scheduler's signal, because the run must save first.

    A worker that is not forked (on macOS, or with Python 3.14) does not inherit the run's handlers.
    """
    del worker
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@dataclasses.dataclass(eq=False, kw_only=True)
class _Steps(Dataset):
    """Steps by number, for PyTorch's `DataLoader`; `share` is this process's part of a step."""

    samples: Samples
    share: range
    global_batch_size: int
    micro_batch_size: int
    start_step: int

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, index: int) -> _Step:
        first = (self.start_step + index) * self.global_batch_size
        bad: list[BadSample] = []
        try:
            rows = self.samples.prepare_all((first + offset for offset in self.share), bad)
        except UsageError as error:  # the main process raises it, without a worker's traceback
            return _Step(batches=[], bad=bad, error=str(error))
        return _Step(batches=self._group(rows), bad=bad, error=None)

    def _group(self, rows: list[Prepared]) -> list[Batch]:
        by_task: dict[tuple[str, bool], list[Prepared]] = {}
        for row in rows:
            # A batch holds either pixels or cached features; rows of one task may have either.
            is_cached = any(role in row.features for role in row.example.prompt_images)
            by_task.setdefault((row.example.task, is_cached), []).append(row)
        size = self.micro_batch_size
        pad_id = self.samples.preparer.chat.tokenizer.pad_id
        batches: list[Batch] = []
        for group in by_task.values():
            if len(group) > size:  # rows of similar length share a batch, for less padding
                group.sort(key=lambda row: (len(row.places), len(row.ids)))
            batches += [
                collate(group[start : start + size], pad_id) for start in range(0, len(group), size)
            ]
        return batches
