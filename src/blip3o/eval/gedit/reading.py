"""Our reading of the judge's grades; anything unclear is unread, and no grade is invented."""

import re

from blip3o.eval.gedit.official import GRADE, MARK
from blip3o.eval.gedit.statistics import BEST
from blip3o.eval.judges.reading import Numbers, is_number, json_object, spoken

_PAIR = re.compile(rf"\[\s*({GRADE})\s*,\s*({GRADE})\s*\]")
_SCORE_KEY = re.compile(r"(?<![A-Za-z])[\"'*]*score[\"'*]*\s*[:=][\"'*\s]*", re.IGNORECASE)


def two_grades(text: str) -> Numbers | None:
    """Returns the two grades 0..10 of an answer.

    Understood are a JSON object with `score`, damaged and cut JSON if the list itself is whole, and
    an answer that is nothing but a list. Anything else is refused: one grade, three of them, grades
    that are out of range or texts, and several lists of scores.
    """
    said = spoken(text.replace(MARK, "\n"))
    if said is None:
        return None
    found = json_object(said)
    if found is not None:
        values = [value for key, value in found[0].items() if key.casefold() == "score"]
        if len(values) != 1 or _SCORE_KEY.search(found[1]):
            return None
        return _in_range(values[0], "json")
    keys = list(_SCORE_KEY.finditer(said))
    if len(keys) == 1:
        pair = _PAIR.match(said, keys[0].end())
        return None if pair is None else _in_range([*map(float, pair.groups())], "damaged")
    pair = _PAIR.fullmatch(said)
    return None if keys or pair is None else _in_range([*map(float, pair.groups())], "list")


def _in_range(values: object, form: str) -> Numbers | None:
    if not isinstance(values, list) or len(values) != 2 or not all(map(is_number, values)):
        return None
    grades = tuple(float(value) for value in values)
    return Numbers(grades, form) if all(0 <= grade <= BEST for grade in grades) else None
