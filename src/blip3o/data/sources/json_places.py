"""Finds the places of values in a JSON text, so that a damaged value affects only itself."""

import json
import re

Place = tuple[int, int]
"""Start and end of a value in a text, in characters."""

_SPACE = re.compile(r"[ \t\r\n]*")
_FINDER = json.JSONDecoder(parse_int=str)
"""Finds the end of a value. Integers stay text: Python refuses to convert very long ones."""


def values_in(text: str) -> list[Place]:
    """Returns the places of the values in a text that is a sequence of JSON values.

    Raises:
        ValueError: if the text holds anything else (`json.JSONDecodeError` gives the place).
    """
    places = []
    at = _skip(text, 0)
    while at < len(text):
        end = _end(text, at)
        places.append((at, end))
        at = _skip(text, end)
    return places


def elements_in(text: str, place: Place) -> list[Place]:
    """Returns the places of the elements of an array; ValueError if `place` holds no array."""
    return [element for _, element in _inside(text, place, "[")]


def members_in(text: str, place: Place) -> dict[str, Place]:
    """Returns the places of an object's values by key; ValueError if `place` holds no object."""
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
            return found  # the closing bracket: the whole value was parsed before
        at = _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _end(text: str, at: int) -> int:
    try:
        return _FINDER.raw_decode(text, at)[1]
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
