"""The table of questions of DPG-Bench."""

import csv
import dataclasses
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from blip3o.core.errors import UsageError

_COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A row of the table.

    Args:
        key: name of the question among those of its item: the id of its proposition, and for a
            repeated id "3.2", "3.3".
        proposition: id of its proposition.
        parents: ids of the propositions on which it depends.
        level_1: "entity", "attribute", "relation", "global" or "other".
        level_2: level 1 with a detail, "attribute - color".
        text: the question.
    """

    key: str
    proposition: int
    parents: tuple[int, ...]
    level_1: str
    level_2: str
    text: str


@dataclasses.dataclass(frozen=True)
class QuestionTable:
    """The table in both readings.

    Args:
        questions: all questions of each item, in the order of the table.
        official: keys of the questions that the official program asks about each item, in its
            order: it skips the first row, a later block of rows of an item replaces an earlier one,
            and a later question with the id of an earlier one takes its place.
        official_stop: why the official program cannot read the table; empty if it can.
    """

    questions: Mapping[str, Sequence[Question]]
    official: Mapping[str, Sequence[str]]
    official_stop: str = ""


def read_table(text: str) -> QuestionTable:
    """Returns the table of questions.

    Raises:
        UsageError: if a column is missing, or an id is not a number.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or [])]:
        raise UsageError(f"the table of questions has no column {missing[0]!r}")
    rows = list(reader)
    questions: dict[str, list[Question]] = defaultdict(list)
    official: dict[str, dict[int, str]] = {}
    before = None
    for number, row in enumerate(rows):
        item = row["item_id"]
        known = questions[item]
        question = _question(row, f"line {number + 2}", known)
        known.append(question)
        if number == 0:
            continue
        if item != before:
            official[item] = {}
        official[item][question.proposition] = question.key
        before = item
    stop = ""
    if _are_numbers(row["item_id"] for row in rows):
        official = {}  # its ids are numbers then, and never equal the name of a file
    elif _are_numbers(row["dependency"] for row in rows):
        stop = "no question has two parents, so the column is read as numbers"
    keys = {item: list(places.values()) for item, places in official.items()}
    return QuestionTable(dict(questions), keys, stop)


def _question(row: Mapping[str, str], place: str, known: Sequence[Question]) -> Question:
    try:
        proposition = int(row["proposition_id"])
        parents = tuple(int(part) for part in row["dependency"].split(",") if part.strip())
    except ValueError as error:
        raise UsageError(
            f"the table of questions, {place}: proposition_id and dependency must be numbers"
        ) from error
    repeats = sum(other.proposition == proposition for other in known)
    level_2 = row["tuple"].partition("(")[0].strip()
    return Question(
        key=f"{proposition}.{repeats + 1}" if repeats else str(proposition),
        proposition=proposition,
        parents=tuple(parent for parent in parents if parent != 0),
        level_1=level_2.partition("-")[0].strip(),
        level_2=level_2,
        text=row["question_natural_language"],
    )


def _are_numbers(cells: Iterable[str]) -> bool:
    try:
        return all(float(cell) is not None for cell in cells)
    except ValueError:
        return False


def zeroed(questions: Sequence[Question], is_yes: Mapping[str, bool]) -> dict[str, bool]:
    """Returns the answers after each question with a refused parent has become a no.

    A no runs down to all descendants, whatever the order of the table. A parent that the table
    lacks refuses nothing.

    Args:
        questions: the questions of the item.
        is_yes: whether the answer is yes, by the key of the question.
    """
    marks = dict(is_yes)
    is_open = True
    while is_open:
        refused = {one.proposition for one in questions if not marks[one.key]}
        fallen = [q.key for q in questions if marks[q.key] and not refused.isdisjoint(q.parents)]
        marks |= dict.fromkeys(fallen, False)
        is_open = bool(fallen)
    return marks
