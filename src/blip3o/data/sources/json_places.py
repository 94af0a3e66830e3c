"""The places of values in a JSON text: they are read later, so that a bad record is bad alone."""

import json
import re

Place = tuple[int, int]
"""Where a value starts and ends in a text, in characters."""

_SPACE = re.compile(r"[ \t\r\n]*")
_FINDER = json.JSONDecoder(parse_int=str)
"""Only finds the end of a value. It leaves numbers as text, for Python refuses the longest ones."""


def values_in(text: str) -> list[Place]:
    """Returns the places of the values that a text is a sequence of, with space between them.

    Args:
        text: lines of JSON, or JSON that is laid out over several lines.

    Raises:
        ValueError: if something else stands in it (`json.JSONDecodeError` says where).
    """
    places = []
    at = _skip(text, 0)
    while at < len(text):
        end = _end(text, at)
        places.append((at, end))
        at = _skip(text, end)
    return places


def elements_in(text: str, place: Place) -> list[Place]:
    """Returns the places of the elements of an array.

    Args:
        text: what the array stands in.
        place: where the array is.

    Raises:
        ValueError: if it is no array of JSON values.
    """
    return [element for _, element in _inside(text, place, "[")]


def members_in(text: str, place: Place) -> dict[str, Place]:
    """Returns the places of the values of an object by their keys.

    Args:
        text: what the object stands in.
        place: where the object is.

    Raises:
        ValueError: if it is no object of JSON values.
    """
    return dict(_inside(text, place, "{"))


def _inside(text: str, place: Place, opening: str) -> list[tuple[str, Place]]:
    if text[place[0] : place[0] + 1] != opening:
        raise json.JSONDecodeError(f"Expecting {opening!r}", text, place[0])
    found: list[tuple[str, Place]] = []
    at = _skip(text, place[0] + 1)
    if text[at : at + 1] in ("]", "}"):
        return found
    while True:
        key = ""
        if opening == "{":
            key, at = _FINDER.raw_decode(text, at)
            at = _skip(text, at)
            if text[at : at + 1] != ":":
                raise json.JSONDecodeError("Expecting ':' delimiter", text, at)
            at = _skip(text, at + 1)
        end = _end(text, at)
        found.append((key, (at, end)))
        at = _skip(text, end)
        if text[at : at + 1] != ",":
            return found  # the whole was read once before: its closing bracket stands here
        at = _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _end(text: str, at: int) -> int:
    try:
        return _FINDER.raw_decode(text, at)[1]
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
