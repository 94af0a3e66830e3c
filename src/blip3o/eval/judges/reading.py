"""Reads the grades in the answers of a judge.

The readers here read numbers in more forms than the official programs do, name the form, and refuse
an answer that is out of range or that can be read in two ways. They never guess.
"""

import dataclasses
import re
from collections.abc import Sequence

from blip3o.core.texts import load_json


@dataclasses.dataclass(frozen=True)
class Numbers:
    """The numbers of an answer.

    Args:
        values: the numbers, in the order in which they were asked for.
        form: the form in which the judge wrote them: "plain", "json", "bold+table" ...
    """

    values: tuple[float, ...]
    form: str


# Repeats have limits, because a judge may answer with thousands of spaces, digits or stars.
_MARKS = r"[*_`\s]{0,40}"
_NUMBER = r"[-+]?\d{1,9}(?:[.,]\d{1,9})?"
_SEPARATOR = r"[:=|\uff1a]|(?<=\s)[-\u2013\u2014](?=\s)"
_DOUBT = re.compile(
    r"[\w%]|\.\d|,\s*\d|\s*(?:or|to|/|[-~\u2013\u2014]+>?|\u2192)\s*\d", re.IGNORECASE
)
"""A number that goes on like this is a part of a number, a range or a change of mind."""


def spoken(text: str) -> str | None:
    """Returns an answer without thoughts; None if it ends within a thought.

    Everything before an end of a thought that has no beginning is a thought, because some servers
    leave the beginning out.
    """
    *thoughts, last = text.split("</think>")
    said = ""
    for part in thoughts:
        before, beginning, _ = part.partition("<think>")
        said = said + before if beginning else ""
    return None if "<think>" in last else (said + last).strip()


def named_numbers(text: str, names: Sequence[str], most: int) -> Numbers | None:
    """Returns the whole number 0..most of each name in an answer.

    Understood are lines, tables and lists with or without bold marks, a range in brackets after the
    name, "2/2", a full-width colon, JSON, and answers that are nothing but one number a line.

    Args:
        text: the answer.
        names: the names, such as "Aesthetic Quality"; their case and spaces do not matter.
        most: the largest number.

    Returns:
        None if a name has no number, two different ones, or one that is out of range, no whole
        number, or unclear.
    """
    said = spoken(text)
    if said is None:
        return None
    found = _json_numbers(said, names)
    outside = said
    values: dict[str, int] = {}
    forms: set[str] = set()
    if found is not None:
        values, outside = found
        forms.add("json")
    for name in names:
        for match in _name_pattern(name, most).finditer(outside):
            gap, number, tail = match["gap"], match["number"], outside[match.end() :]
            line = tail.partition("\n")[0]
            if "\n" in gap and line.strip(" \t\r*_`"):
                continue  # the number of a list, which belongs to the next line
            value = _whole(number)
            if value is None or _DOUBT.match(tail) or values.setdefault(name, value) != value:
                return None
            forms |= _features(outside[match.start("gap") : match.end()])
    if not values:
        return _bare_numbers(said, len(names), most)
    if any(not 0 <= values.get(name, -1) <= most for name in names):
        return None
    return Numbers(tuple(values[name] for name in names), "+".join(sorted(forms)) or "plain")


def _name_pattern(name: str, most: int) -> re.Pattern[str]:
    words = r"[\s_-]+".join(map(re.escape, name.split()))
    return re.compile(
        rf"(?<![^\W_]){words}(?:[ \t]+(?:score|rating))?(?P<gap>{_MARKS}(?:\([^()\n]{{0,40}}\))?"
        rf"{_MARKS}(?:{_SEPARATOR})?[*_`\s|]{{0,40}})(?P<number>{_NUMBER})"
        rf"(?:\s*/\s*{most}(?!\d)|\s+out of {most}(?!\d))?",
        re.IGNORECASE,
    )


def _features(written: str) -> set[str]:
    """Returns names of everything that is not plain between a name and the end of its number."""
    marks = {"bold": "*_`", "range": "(", "table": "|", "equals": "=", "wide": "\uff1a"}
    marks |= {"over": "/", "dash": "-\u2013\u2014", "decimal": ".,"}
    features = {name for name, letters in marks.items() if any(one in written for one in letters)}
    return features - {"dash"} if "range" in features else features


def _whole(number: str) -> int | None:
    if not re.fullmatch(_NUMBER, number):
        return None
    whole, _, rest = number.replace(",", ".").partition(".")
    return int(whole) if not rest.strip("0") else None


def _bare_numbers(text: str, count: int, most: int) -> Numbers | None:
    lines = [line.strip().strip("*_`") for line in text.splitlines() if line.strip()]
    if len(lines) != count or not all(re.fullmatch(r"\d{1,9}", line) for line in lines):
        return None
    values = tuple(int(line) for line in lines)
    return Numbers(values, "bare") if max(values) <= most else None


def json_object(text: str) -> tuple[dict[str, object], str] | None:
    """Returns the JSON object from the first to the last brace, and the text around it."""
    start, end = text.find("{"), text.rfind("}") + 1
    try:
        data = load_json(text[start:end]) if 0 <= start < end else None
    except ValueError:
        return None
    return (data, f"{text[:start]}\n{text[end:]}") if isinstance(data, dict) else None


def is_number(value: object) -> bool:
    """Returns whether a value of JSON is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _json_numbers(text: str, names: Sequence[str]) -> tuple[dict[str, int], str] | None:
    found = json_object(text)
    if found is None:
        return None
    data, outside = found
    wanted = {_plain(name): name for name in names}
    inner = [value for value in data.values() if isinstance(value, dict)]
    if len(inner) == 1 and not any(_plain(key) in wanted for key in data):
        data = inner[0]
    values: dict[str, int] = {}
    for key, value in data.items():
        name = wanted.get(_plain(key))
        number = _whole(str(value))
        if name is None or name in values:
            continue
        if number is None:
            return None
        values[name] = number
    return (values, outside) if values else None


def _plain(key: str) -> str:
    return re.sub(r"[\s_-]+", " ", key).strip().casefold()


def line_numbers(text: str, count: int, least: int, most: int) -> Numbers | None:
    """Returns the numbers of an answer that holds exactly `count` lines "Label: number".

    Args:
        text: the answer; a number may be bold, or followed by "/5", "points" or a remark in
            brackets. An object of JSON with exactly `count` numbers is also understood.
        count: number of the lines.
        least: the smallest number.
        most: the largest number.

    Returns:
        None for more or fewer lines, or a number that is out of range or no whole number.
    """
    said = spoken(text)
    if said is None:
        return None
    found = json_object(said)
    forms: set[str] = set()
    if found is not None:
        numbers = [str(value) for value in found[0].values() if is_number(value)]
        forms.add("json")
    else:
        matches = [_line_pattern(most).match(line) for line in said.splitlines()]
        numbers = [match["number"] for match in matches if match is not None]
        for match in matches:
            forms |= set() if match is None else _features(match["written"])
    values = [_whole(number) for number in numbers]
    whole = tuple(value for value in values if value is not None and least <= value <= most)
    if len(values) != count or len(whole) != count:
        return None
    return Numbers(whole, "+".join(sorted(forms)) or "plain")


def _line_pattern(most: int) -> re.Pattern[str]:
    return re.compile(
        r"[\s>#*_`|-]{0,40}(?:\d{1,9}[.)]\s{0,9})?[*_`]{0,4}[^\W\d_][^:=|\uff1a]{0,80}?"
        rf"(?P<written>{_MARKS}(?:\([^()]{{0,40}}\))?{_MARKS}[:=|\uff1a]{_MARKS}(?P<number>{_NUMBER})"
        rf"(?:\s*/\s*{most}|\s+out of {most}|\s+points?)?[*_`]*)[\s|]*[.;,]?\s*(?:\([^()]*\))?\s*$"
    )
