"""The folder of a finished evaluation: items, verdicts and results, read and checked together."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from blip3o.core.errors import UsageError, reason_of
from blip3o.core.files import read_text
from blip3o.core.texts import load_json
from blip3o.eval.benchmark import Item, Outcome, Row, Verdict
from blip3o.eval.report.results import FILE, Results

ITEMS, VERDICTS, SAMPLES = "items.jsonl", "verdicts.jsonl", "samples"
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".txt")


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
        verdicts: the last verdict of the judge of the results on each sample, by (id of the item,
            number of the sample).
        places: the files that lines of verdicts name, by the same key.
        remarks: contradictions between the files, for the reader of the report.
    """

    folder: Path
    results: Results
    items: Sequence[Item]
    verdicts: Mapping[tuple[str, int], Verdict]
    places: Mapping[tuple[str, int], Place]
    remarks: Sequence[str]

    @classmethod
    def read(cls, folder: Path) -> "Evaluation":
        """Returns the evaluation in a folder.

        Raises:
            UsageError: if a file is missing or broken, if `items.jsonl` is not the file that was
                scored, or if no verdict is of the judge that the results name.
        """
        results = Results.read(folder)
        items = _items(folder / ITEMS, results.items_sha256)
        verdicts: dict[tuple[str, int], Verdict] = {}
        places: dict[tuple[str, int], Place] = {}
        others: Counter[str] = Counter()
        asked = {(item.id, number) for item in items for number in range(item.num_samples)}
        num_strange = 0
        for name, data in _lines(folder / VERDICTS):
            verdict = _verdict(name, data)
            key = verdict.item, verdict.number
            if verdict.judge != results.judge:
                others[verdict.judge] += 1
            elif key not in asked:
                num_strange += 1
            else:
                verdicts[key] = verdict
                places.pop(key, None)
                if isinstance(data.get("file"), str):
                    places[key] = Place(folder / data["file"], _tile(name, data.get("tile")))
        if others and not verdicts:
            raise UsageError(
                f"{folder / VERDICTS} has no verdict of {results.judge}, which {FILE} names, only "
                f"verdicts of {', '.join(sorted(others))}: score the folder again"
            )
        evaluation = cls(
            folder=folder,
            results=results,
            items=items,
            verdicts=verdicts,
            places=places,
            remarks=(),
        )
        remarks = [
            f"{count:,} verdicts of another judge, {judge}, take no part."
            for judge, count in sorted(others.items())
        ]
        if num_strange:
            remarks.append(f"{num_strange:,} verdicts on samples that were not asked for.")
        return dataclasses.replace(evaluation, remarks=[*remarks, *evaluation._contradictions()])

    def rows(self) -> list[Row]:
        """Returns a row for each sample that was asked for, in the order of the items."""
        return [
            Row(item, number, self.verdicts.get((item.id, number)))
            for item in self.items
            for number in range(item.num_samples)
        ]

    def place(self, item: str, number: int) -> Place | None:
        """Returns the file of a sample; None if it is not there."""
        place = self.places.get((item, number))
        if place is None:
            return own_place(self.folder, item, number)
        return place if place.file.is_file() else None

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


def own_place(folder: Path, item: str, number: int) -> Place | None:
    """Returns the file of a sample in the folder of its evaluation; None if it is not there."""
    for ending in _ENDINGS:
        file = folder / SAMPLES / item / f"{number}{ending}"
        if file.is_file():
            return Place(file)
    return None


def outcomes_of(rows: Sequence[Row]) -> dict[str, int]:
    """Returns the number of rows by outcome; a row without a verdict is missing."""
    counts = Counter(row.verdict.outcome if row.verdict else "missing" for row in rows)
    return {name: counts[name] for name in get_args(Outcome) if counts[name]}


def _counts(outcomes: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in outcomes.items()) or "nothing"


def _items(file: Path, sha256: str) -> list[Item]:
    text = read_text(file, "items")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != sha256:
        raise UsageError(
            f"{file} is not the file that was scored: its hash is {found[:16]}..., {FILE} says "
            f"{sha256[:16]}...; restore it, or evaluate again"
        )
    items = []
    for name, data in _objects(text.split("\n"), file):
        try:
            item = Item(**data)
            items.append(dataclasses.replace(item, sources=tuple(item.sources)))
        except TypeError as error:
            raise UsageError(f"{name} is not an item: evaluate again") from error
    return items


def _verdict(name: str, data: Mapping[str, Any]) -> Verdict:
    known = {field.name for field in dataclasses.fields(Verdict)}
    try:
        verdict = Verdict(**{key: value for key, value in data.items() if key in known})
    except TypeError as error:
        raise UsageError(f"{name} is not a verdict: score the folder again") from error
    is_score = verdict.score is None or isinstance(verdict.score, int | float)
    if verdict.outcome not in get_args(Outcome) or not is_score:
        raise UsageError(f"{name} is not a verdict: score the folder again")
    return verdict


def _tile(name: str, value: object) -> tuple[int, int, int, int] | None:
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 4 and all(isinstance(n, int) for n in value):
        column, line, columns, lines = value
        if 0 <= column < columns and 0 <= line < lines:
            return column, line, columns, lines
    raise UsageError(f"{name} is not a verdict: score the folder again")


def _lines(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields (name for messages, object) of each line; an unfinished last line is no line."""
    try:
        data = file.read_bytes()  # may be larger than the texts that users write
    except OSError as error:
        raise UsageError(f"cannot read verdicts from {file}: {reason_of(error)}") from error
    # A killed process may leave the start of a line, which a resumed run writes again.
    return _objects(data[: data.rfind(b"\n") + 1].split(b"\n"), file)


def _objects(lines: Sequence[bytes | str], file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            name = f"{file}, line {number}"
            try:
                data = load_json(line)
            except ValueError as error:
                raise UsageError(f"{name} is damaged ({error}): evaluate again") from error
            if not isinstance(data, Mapping):
                raise UsageError(f"{name} is damaged (no JSON object): evaluate again")
            yield name, data
