"""The folder of a finished evaluation: items, verdicts and results, read and checked together."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Item, Outcome, Row, Verdict
from blip3o.eval.generate import find
from blip3o.eval.plan import ITEMS, SAMPLES, Job, read_plan
from blip3o.eval.report.results import FILE, Results
from blip3o.eval.verdicts import FILE as VERDICTS
from blip3o.eval.verdicts import Key, VerdictFile


@dataclasses.dataclass(frozen=True)
class Place:
    """The file of a sample.

    Args:
        file: the file.
        tile: (column, row, columns, rows) of the sample in a grid; None for the whole image.
    """

    file: Path
    tile: tuple[int, int, int, int] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A finished evaluation.

    Args:
        folder: its folder.
        results: `results.json`.
        items: `items.jsonl`.
        verdicts: the verdict on each sample.
        remarks: contradictions between the files, for the reader of the report.
    """

    folder: Path
    results: Results
    items: Sequence[Item]
    verdicts: Mapping[Key, Verdict]
    remarks: Sequence[str] = ()

    @classmethod
    def read(cls, folder: Path) -> "Evaluation":
        """Returns the evaluation in a folder.

        Raises:
            UsageError: if a file is missing or broken, if `items.jsonl` is not the file that was
                scored, or if no verdict is of the judge that the results name.
        """
        results = Results.read(folder)
        plan = read_plan(folder)
        if plan.sha256 != results.items_sha256:
            raise UsageError(
                f"{folder / ITEMS} is not the file that was scored: its hash is "
                f"{plan.sha256[:16]}..., {FILE} says {results.items_sha256[:16]}...; restore it, "
                "or evaluate again"
            )
        verdicts = VerdictFile(folder).read()
        asked = {(item.id, number) for item, number in plan.jobs()}
        own = {
            key: verdict
            for key, verdict in verdicts.items()
            if verdict.judge == results.judge and key in asked
        }
        others = Counter(one.judge for one in verdicts.values() if one.judge != results.judge)
        if others and not own:
            raise UsageError(
                f"{folder / VERDICTS} has no verdict of {results.judge}, which {FILE} names, only "
                f"verdicts of {', '.join(sorted(others))}: score the folder again"
            )
        remarks = [
            f"{count:,} verdicts of another judge, {judge}, take no part."
            for judge, count in sorted(others.items())
        ]
        num_strange = len(verdicts) - len(own) - others.total()
        if num_strange:
            remarks.append(f"{num_strange:,} verdicts on samples that were not asked for.")
        evaluation = cls(folder=folder, results=results, items=plan.items, verdicts=own)
        return dataclasses.replace(evaluation, remarks=[*remarks, *evaluation._contradictions()])

    def rows(self) -> list[Row]:
        """Returns a row for each sample that was asked for, in the order of the items."""
        return [
            Row(item, number, self.verdicts.get((item.id, number)))
            for item in self.items
            for number in range(item.num_samples)
        ]

    def place(self, row: Row) -> Place | None:
        """Returns the file of a sample; None if it is not there."""
        return place_of(self.folder, row)

    def _contradictions(self) -> Iterator[str]:
        """Yields the differences between `results.json` and the other files."""
        found = outcomes_of(self.rows())
        stated = {name: count for name, count in self.results.outcomes.items() if count}
        if found != stated:
            yield (
                f"{FILE} counts the outcomes {_counts(stated)}, but {VERDICTS} has "
                f"{_counts(found)}: the figures are not those of the verdicts."
            )
        elif sum(found.values()) != self.results.num_samples:
            yield (
                f"{FILE} counts {self.results.num_samples:,} samples, but {ITEMS} asks for "
                f"{sum(found.values()):,}."
            )


def place_of(folder: Path, row: Row) -> Place | None:
    """Returns the file of a sample of an evaluation; None if it is not there.

    Args:
        folder: folder of the evaluation.
        row: the sample. Its verdict may name a file that is not in `samples/`.
    """
    verdict = row.verdict
    if verdict is not None and verdict.file is not None:
        file: Path | None = folder / verdict.file
        tile = verdict.tile
    else:
        file, tile = find(folder / SAMPLES, Job(row.item, row.number)), None
    return Place(file, tile) if file is not None and file.is_file() else None


def outcomes_of(rows: Sequence[Row]) -> dict[str, int]:
    """Returns the number of rows by outcome; a row without a verdict is missing."""
    counts = Counter(row.verdict.outcome if row.verdict else "missing" for row in rows)
    return {name: counts[name] for name in get_args(Outcome) if counts[name]}


def _counts(outcomes: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in outcomes.items()) or "nothing"
