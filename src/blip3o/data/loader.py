"""Batches of a run: step t is a pure function of (seed, t), however they are loaded.

A bad sample is counted, written to `quarantine.jsonl` with its reason, and replaced by the next
record of its source's order, so that the replacement, too, depends on nothing but the seed. Over
the limit the run stops: a data set that is broken should not be trained on in silence.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from blip3o.core.errors import UsageError
from blip3o.core.rng import numpy_rng
from blip3o.core.types import Batch
from blip3o.data.collate import Prepared, Preparer, collate
from blip3o.data.mixture import DataConfig, Mixture
from blip3o.data.tasks import draw_turns, get_task
from blip3o.imaging.load import open_image

_MAX_REPLACEMENTS = 100
_Slot = tuple[int, int, int]
_Bad = dict[str, Any]


class Loader:
    """Iterates over the steps of a run.

    Args:
        config: what to learn from.
        preparer: decodes and tokenizes.
        seed: the run's seed.
        global_batch_size: samples a step.
        micro_batch_size: most rows of a batch.
        quarantine: file that bad samples are appended to; None keeps no list.

    Raises:
        UsageError: if a source is missing or a task unknown.
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
    ) -> None:
        self._config = config
        self._samples = _Samples(config, preparer, seed)
        self._preparer = preparer
        self._global_batch_size = global_batch_size
        self._micro_batch_size = micro_batch_size
        self._quarantine = quarantine
        self.num_bad = 0
        self.num_seen = 0

    def __call__(self, start_step: int) -> Iterator[list[Batch]]:
        """Yields, for each step from `start_step` on, its batches: rows of one task each."""
        workers = self._config.num_workers
        loaded = DataLoader(
            _Steps(self._samples, self._global_batch_size, start_step),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            shuffle=False,
        )
        for rows, bad in loaded:
            self._note(rows, bad)
            yield self._group(rows)

    def first_pictures(self, count: int) -> list[Image.Image]:
        """Returns the first pictures of the first source that has any, for samples.

        Args:
            count: how many.
        """
        pictures = []
        for source in self._samples.mixture.sources:
            for position in range(len(source)):
                files = source.read(position)[1]
                if "image" in files:
                    pictures.append(open_image(files["image"]))
                if len(pictures) == count:
                    return pictures
        return pictures

    def _group(self, rows: list[Prepared]) -> list[Batch]:
        by_task: dict[str, list[Prepared]] = {}
        for row in rows:
            by_task.setdefault(row.example.task, []).append(row)
        size = self._micro_batch_size
        batches: list[Batch] = []
        for group in by_task.values():
            if len(group) > size:  # rows of like length share a batch: less padding
                group.sort(key=lambda row: len(row.ids))
            batches += [
                collate(group[start : start + size], self._preparer)
                for start in range(0, len(group), size)
            ]
        return batches

    def _note(self, rows: list[Prepared], bad: list[_Bad]) -> None:
        self.num_seen += len(rows)
        self.num_bad += len(bad)
        if bad and self._quarantine is not None:
            with self._quarantine.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in bad)
        limit = self._config.bad_sample_limit
        if self.num_bad > max(10, limit * self.num_seen):
            raise UsageError(
                f"{self.num_bad} of {self.num_seen} samples are bad, more than the limit of "
                f"{limit:.1%} (data.bad_sample_limit); the last: {bad[-1]['reason']}"
            )


class _Samples:
    """Prepared samples by slot, with replacements for bad ones."""

    def __init__(self, config: DataConfig, preparer: Preparer, seed: int) -> None:
        self.mixture = Mixture(config, seed)
        self._tasks = [get_task(name) for name in self.mixture.tasks]
        self._max_turns = [entry.max_turns for entry in config.mixture]
        self._preparer = preparer
        self._seed = seed

    def prepare(self, slot: _Slot) -> tuple[Prepared, list[_Bad]]:
        index, entry, number = slot
        bad: list[_Bad] = []
        for shift in range(_MAX_REPLACEMENTS):
            key = "?"
            try:
                record = self.mixture.record(index, entry, number, shift)
                key = record.key
                rng = numpy_rng(self._seed, "task", index, shift)
                example = self._tasks[entry](record, rng)
                max_turns = self._max_turns[entry]
                if max_turns is not None and example.messages:
                    example = draw_turns(example, max_turns, rng)
                return self._preparer.prepare(example), bad
            except (ValueError, OSError, UsageError) as error:
                source = self.mixture.sources[entry].name
                bad.append({"source": source, "key": key, "index": index, "reason": str(error)})
        raise UsageError(f"{_MAX_REPLACEMENTS} bad samples in a row; the last: {bad[-1]['reason']}")


class _Steps(Dataset):
    """Steps by number, for PyTorch's loader."""

    def __init__(self, samples: _Samples, size: int, start_step: int) -> None:
        self._samples = samples
        self._size = size
        self._start_step = start_step
        self._slots: Iterator[_Slot] | None = None
        self._next_step = -1

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, index: int) -> tuple[list[Prepared], list[_Bad]]:
        step = self._start_step + index
        if self._slots is None or step < self._next_step:
            self._slots = self._samples.mixture.schedule(step * self._size)
            self._next_step = step
        while self._next_step < step:  # a worker skips the steps of the others: numbers only
            for _ in range(self._size):
                next(self._slots)
            self._next_step += 1
        slots = [next(self._slots) for _ in range(self._size)]
        self._next_step += 1
        prepared, bad = zip(*(self._samples.prepare(slot) for slot in slots), strict=True)
        return list(prepared), [one for rows in bad for one in rows]
