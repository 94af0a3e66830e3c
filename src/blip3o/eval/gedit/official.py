"""The reading of answers by the official program of GEdit-Bench (parity family `gedit`)."""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from typing import Literal

from blip3o.eval.gedit.statistics import BEST

GRADE = r"-?\d+(?:\.\d+)?"
MARK = "||V^=^V||"
_BARE_PAIR = re.compile(r"\[\s*(\d{1,18})\s*,\s*(\d{1,18})\s*\]")
_RATE_LIMIT = "rate_limit_exceeded"

OfficialAnswer = list[object] | Literal["random", "stopped"] | None
"""Scores; "random" if the official program invents a number; "stopped" at its rate limit."""


def official_scores(answer: str, *, is_first: bool) -> OfficialAnswer:
    """Returns the scores that the official program reads from an answer; None if it reads none.

    Args:
        answer: the answer.
        is_first: whether it is the first try. On later ones the program takes a random number
            0..10 for an answer without braces; we never do.
    """
    if answer == _RATE_LIMIT:
        return "stopped"
    start, end = answer.find("{"), answer.rfind("}") + 1
    if answer.count(MARK) >= 2:
        body = answer.split(MARK)[1]
    elif 0 <= start < end:
        body = answer[start:end]
    elif not is_first:
        return "random"
    else:
        return _official_bare(answer)
    body = body.replace("\n", "").strip()
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = _repaired(body)
    if not isinstance(data, dict) or "score" not in data:
        return None
    score = data["score"]
    return score if isinstance(score, list) else [score]


def _official_bare(answer: str) -> list[object] | None:
    pair = _BARE_PAIR.search(answer)
    if pair is not None:
        return [int(pair[1]), int(pair[2])]
    number = answer.strip()
    is_score = re.fullmatch(r"\d{1,18}", number) is not None and int(number) <= BEST
    return [int(number)] if is_score else None


def _repaired(body: str) -> dict[str, object] | None:
    """Returns an object whose keys have no quotes, if all its values are numbers or words.

    The official program repairs more texts than these by chance; those stay unread here.
    """
    if not body.startswith("{") or re.search(r"[\[\]\"']", body):
        return None
    data: dict[str, object] = {}
    for pair in body[1:-1].split(","):
        key, colon, value = (part.strip() for part in pair.partition(":"))
        if not colon or not re.fullmatch(r"\w+", key) or not value:
            return None
        number = re.fullmatch(GRADE, value)
        data[key] = value if number is None else [json.loads(value)]
    return data


@dataclasses.dataclass(frozen=True)
class OfficialSample:
    """The official result of a sample.

    Args:
        outcome: "scored"; "random" if it would hold an invented number; "stopped" if the program
            stops there; "unread" if these answers do not end its tries.
        calls: answers that were used.
        semantics: lower grade for semantics; None unless scored.
        quality: lower grade for quality; None unless scored.
        overall: the root of their product; None unless scored.
    """

    outcome: Literal["scored", "random", "stopped", "unread"]
    calls: int
    semantics: float | None = None
    quality: float | None = None
    overall: float | None = None


def official_sample(pairs: Sequence[tuple[str, str]]) -> OfficialSample:
    """Returns the result of tries, each of which asks both questions.

    Args:
        pairs: answers about semantics and quality of each try.
    """
    for number, pair in enumerate(pairs):
        calls = 2 * (number + 1)
        read = [official_scores(answer, is_first=number == 0) for answer in pair]
        if None in read:
            continue
        if "random" in read:
            return OfficialSample("random", calls)
        try:
            semantics, quality = (_least(scores) for scores in read)
            overall = math.sqrt(semantics * quality)
        except ValueError:
            return OfficialSample("stopped", calls)
        return OfficialSample("scored", calls, semantics, quality, overall)
    return OfficialSample("unread", 2 * len(pairs))


def _least(scores: OfficialAnswer) -> float:
    """Returns the lowest score; a ValueError is the stop of the official program."""
    numbers = scores if isinstance(scores, list) else []
    if not all(isinstance(one, int | float) for one in numbers):
        raise ValueError("a score is no number")
    return min(one for one in numbers if isinstance(one, int | float))
