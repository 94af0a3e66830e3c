"""`results.json`: the figures of an evaluation, with everything that shaped them."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blip3o.core.errors import UsageError, shown
from blip3o.core.files import read_text, write_atomic
from blip3o.core.texts import load_json
from blip3o.eval.report.intervals import Bounds, Intervals

FILE = "results.json"

SHAPERS = ("judge", "version", "commit", "seed", "sampler", "items_sha256", "model")
"""Keys that a score needs to be understood and repeated; none of them may be empty."""
_REQUIRED = ("benchmark", "title", "overall", "by_category", "num_samples", "outcomes", *SHAPERS)


def title_of(name: str, judge: str, remarks: Sequence[str] = ()) -> str:
    """Returns the title of results: only results of one title can be compared.

    Args:
        name: name of the benchmark.
        judge: `Scorer.judge`.
        remarks: `Benchmark.remarks`.
    """
    return "; ".join([f"{name}({judge})", *remarks])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """The content of `results.json`.

    Args:
        benchmark: name of the benchmark.
        title: name of the benchmark with its judge and remarks, as `title_of` returns it.
        judge: the judge with its version.
        overall: the headline; None if some samples have no judgement.
        by_category: the same by category.
        num_samples: number of samples that were asked for.
        outcomes: number of samples by outcome.
        items_sha256: hash of `items.jsonl`, which holds all prompts.
        model: identity of the model: its name and the hash of its weights.
        sampler: settings of the sampler; images from elsewhere say so here.
        seed: seed of the noise and of the choices of the benchmark; for images from elsewhere, the
            seed as their owner states it.
        version: version of blip3o.
        commit: commit of blip3o.
        worst_score: score of a sample that is missing or broken.
        settings: all further settings.
        intervals: 95 % intervals of the figures.
        figures: further figures.
        notes: remarks that a reader of the figures needs.
        other: keys that this version does not know; they are kept.
    """

    benchmark: str
    title: str
    judge: str
    overall: float | None
    by_category: Mapping[str, float | None]
    num_samples: int
    outcomes: Mapping[str, int]
    items_sha256: str
    model: Mapping[str, Any]
    sampler: Mapping[str, Any]
    seed: int | str
    version: str
    commit: str
    worst_score: float = 0.0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    intervals: Intervals = dataclasses.field(default_factory=Intervals)
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    other: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """Returns the results in a folder.

        Raises:
            UsageError: if the file is missing or broken, or lacks a key that shaped its score; the
                message names all missing keys.
        """
        file = folder / FILE
        if folder.is_dir() and not file.exists():
            raise UsageError(f"{folder} has no {FILE}: finish this evaluation first")
        try:
            data = load_json(read_text(file, "results"))
        except ValueError as error:
            raise UsageError(f"{file} is damaged ({error}): score its folder again") from error
        return cls.from_dict(data, str(file))

    @classmethod
    def from_dict(cls, data: object, name: str = FILE) -> "Results":
        """Returns the results that `to_dict` has made plain data of.

        Args:
            data: the content of the file.
            name: the file, for messages.

        Raises:
            UsageError: as `read`.
        """
        if not isinstance(data, Mapping):
            raise UsageError(f"{name} must hold a JSON object, got {shown(data)}")
        missing = [key for key in _REQUIRED if key not in data]
        missing += [key for key in SHAPERS if key in data and _is_empty(data[key])]
        if missing:
            raise UsageError(
                f"{name} does not say what shaped its score: it lacks {', '.join(missing)}; "
                "evaluate again with this version of blip3o"
            )
        known = {field.name for field in dataclasses.fields(cls)} - {"other"}
        read = _Reader(data, name)
        results = cls(
            benchmark=read.text("benchmark"),
            title=read.text("title"),
            judge=read.text("judge"),
            overall=read.number("overall", data["overall"]),
            by_category=read.numbers("by_category"),
            num_samples=read.count("num_samples", data["num_samples"]),
            outcomes={
                str(key): read.count(f"outcomes.{key}", value)
                for key, value in read.mapping("outcomes").items()
            },
            items_sha256=read.text("items_sha256"),
            model=read.mapping("model"),
            sampler=read.mapping("sampler"),
            seed=read.seed(),
            version=read.text("version"),
            commit=read.text("commit"),
            worst_score=read.number("worst_score", data.get("worst_score")) or 0.0,
            settings=read.mapping("settings"),
            intervals=read.intervals(),
            figures=read.mapping("figures"),
            notes=read.texts("notes"),
            other={key: value for key, value in data.items() if key not in known},
        )
        if f"({results.judge})" not in results.title:
            raise UsageError(
                f"{name}: the title {shown(results.title)} does not name the judge "
                f"{shown(results.judge)}; evaluate again with this version of blip3o"
            )
        return results

    def to_dict(self) -> dict[str, object]:
        """Returns the results as JSON data."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del values["other"]
        plain = {"intervals": self.intervals.to_dict(), "notes": list(self.notes)}
        return {**values, **plain, **self.other}

    def write(self, folder: Path) -> None:
        """Writes `results.json` into a folder, atomically.

        Raises:
            UsageError: if a later `read` would refuse it.
            ValueError: if a figure is NaN or infinite.
        """
        data = self.to_dict()
        text = json.dumps(data, indent=2, allow_nan=False) + "\n"
        Results.from_dict(data, str(folder / FILE))
        write_atomic(folder / FILE, text)


def _is_empty(value: object) -> bool:
    """Returns whether a value says nothing: null, "", {} or {"name": null}; 0 says something."""
    if isinstance(value, Mapping):
        return all(_is_empty(inner) for inner in value.values())
    return value is None or value == "" or value == []


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads the keys of a results file and checks their types.

    Args:
        data: the content of the file.
        name: the file, for messages.
    """

    data: Mapping[str, Any]
    name: str

    def _wrong(self, key: str, what: str, value: object) -> UsageError:
        return UsageError(f"{self.name}: {key} must be {what}, got {shown(value)}")

    def text(self, key: str) -> str:
        if not isinstance(self.data[key], str):
            raise self._wrong(key, "a text", self.data[key])
        return self.data[key]

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.data.get(key, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self._wrong(key, "a list of texts", value)
        return tuple(value)

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.data.get(key, {})
        if not isinstance(value, Mapping):
            raise self._wrong(key, "an object", value)
        return value

    def number(self, key: str, value: object) -> float | None:
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            raise self._wrong(key, "a finite number or null", value)
        return value

    def count(self, key: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._wrong(key, "a whole number from 0", value)
        return value

    def seed(self) -> int | str:
        value = self.data["seed"]
        return value if isinstance(value, str) else self.count("seed", value)

    def numbers(self, key: str) -> dict[str, float | None]:
        values = self.mapping(key).items()
        return {name: self.number(f"{key}.{name}", value) for name, value in values}

    def intervals(self) -> Intervals:
        data = self.mapping("intervals")
        by_category = data.get("by_category", {})
        if not isinstance(by_category, Mapping):
            raise self._wrong("intervals.by_category", "an object", by_category)
        return Intervals(
            overall=self._bounds("intervals.overall", data.get("overall")),
            by_category={
                name: self._bounds(f"intervals.by_category.{name}", value)
                for name, value in by_category.items()
            },
        )

    def _bounds(self, key: str, value: object) -> Bounds | None:
        if value is None:
            return None
        if isinstance(value, list) and len(value) == 2:
            low, high = (self.number(key, one) for one in value)
            if low is not None and high is not None and low <= high:
                return low, high
        raise self._wrong(key, "[low, high] or null", value)
