"""Reads answers and makes tables as the official programs of WISE do, faults included.

Source: parity family `wise`.
"""

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence

from blip3o.eval.wise.versions import Version

MOST_ATTEMPTS = 3

_NAMED = re.compile(
    r"(consistency|realism|aesthetic quality)\*{0,2}\s*(?::\s*)?(\d)", re.IGNORECASE
)
_SCORE = re.compile(r"score\*{0,2}\s*(?::\s*)?([01])\b", re.IGNORECASE)
_THOUGHT = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
_STRAY_END = re.compile(r"</think>\s*")

Scores = dict[str, float]


def legacy_scores(text: str) -> Scores:
    """Returns the scores that the program of the legacy version reads; some may be missing.

    It reads one digit after each name, wherever it stands and whatever follows. Only without any
    name does it take the first three lines that are 0, 1 or 2.
    """
    found = {
        name.lower().replace(" ", "_"): float(int(digit)) for name, digit in _NAMED.findall(text)
    }
    if found:
        return found
    bare = _bare_lines(text, ("0", "1", "2"))
    if len(bare) < 3:
        return {}
    names = ("consistency", "realism", "aesthetic_quality")
    return dict(zip(names, map(float, bare[:3]), strict=True))


def verified_scores(text: str) -> Scores:
    """Returns the score that the program of the Verified version reads, or nothing."""
    said = without_thoughts(text)
    match = _SCORE.search(said)
    if match is not None:
        return {"score": float(match[1])}
    bare = _bare_lines(said, ("0", "1"))
    return {"score": float(bare[0])} if len(bare) == 1 else {}


def without_thoughts(text: str) -> str:
    """Returns an answer without its closed thoughts and without stray ends of thoughts."""
    has_end = "</think>" in text  # the search takes long in many thoughts without an end
    return _STRAY_END.sub("", _THOUGHT.sub("", text) if has_end else text).strip()


def _bare_lines(text: str, allowed: Sequence[str]) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() in allowed]


def reader(version: Version) -> Callable[[str], Scores]:
    """Returns the reader of a version."""
    return verified_scores if version.most == 1 else legacy_scores


@dataclasses.dataclass(frozen=True)
class FirstRead:
    """The result of up to three attempts.

    Args:
        scores: scores of the first complete answer; None if no attempt gave one.
        calls: attempts that the program makes with these answers.
    """

    scores: Scores | None
    calls: int


def first_read(version: Version, answers: Sequence[str | None]) -> FirstRead:
    """Returns the first complete answer, as the official program takes it.

    Args:
        version: the version.
        answers: answers in their order; None for an attempt that ended in an error.
    """
    read, wanted = reader(version), set(version.score_keys())
    tried = answers[:MOST_ATTEMPTS]
    for number, answer in enumerate(tried):
        scores = {} if answer is None else read(answer)
        if wanted <= scores.keys():
            return FirstRead(scores, number + 1)
    return FirstRead(None, len(tried))


@dataclasses.dataclass(frozen=True)
class CategoryMean:
    """A line of the table.

    Args:
        mean: mean score of the samples, 0..1.
        n: number of the samples.
    """

    mean: float
    n: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """The official table.

    Args:
        by_category: means by category; categories without samples are not there.
        overall: weighted mean, only if all 1000 ids are present and each category has a sample.
        missing_ids: ids without a line.
        num_skipped: lines that are passed over with a warning.
    """

    by_category: dict[str, CategoryMean]
    overall: float | None
    missing_ids: list[int]
    num_skipped: int

    @property
    def printed_overall(self) -> str | None:
        """The overall score as it is printed."""
        return None if self.overall is None else f"{self.overall:.2f}"


def table(version: Version, files: Sequence[Sequence[str]], part: str = "all") -> Table:
    """Returns the table of files of scores.

    A line without a readable score counts as present; a repeated id counts twice.

    Args:
        version: the version.
        files: the lines of each file, which are JSON objects with `prompt_id` and the scores.
        part: "all", or the part that a single file holds: with a missing id it is not used.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    present: set[int] = set()
    skipped = 0
    for line in (line for lines in files for line in lines):
        row = _row(line)
        number = None if row is None else row.get("prompt_id")
        if row is None or not isinstance(number, int):
            skipped += 1
            continue
        present.add(number)
        category = version.category(number)
        values = {key: row.get(key) for key in version.score_keys()}
        usable = {key: value for key, value in values.items() if isinstance(value, int | float)}
        is_allowed = version.most > 1 or all(value in (0, 1) for value in usable.values())
        if category is None or len(usable) < len(values) or not is_allowed:
            skipped += 1
            continue
        scores[category].append(version.score(usable))
    missing = [number for number in version.ids(part) if number not in present]
    if part != "all" and len(files) == 1 and missing:
        scores.clear()
    means = {name: CategoryMean(sum(own) / len(own), len(own)) for name, own in scores.items()}
    is_complete = part == "all" and not missing
    overall = version.overall({name: one.mean for name, one in means.items()})
    return Table(
        by_category=means,
        overall=overall if is_complete else None,
        missing_ids=missing,
        num_skipped=skipped,
    )


def _row(line: str) -> dict[str, object] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
