"""JSON as records need it: a repeated key is an error, and errors name the mistake.

Values are found in a text first and read later, so that one bad record leaves its neighbors whole.
"""

import codecs
import json
import re
from typing import Any

Place = tuple[int, int]
"""Where a value starts and ends in a text, in characters."""

_SPACE = re.compile(r"[ \t\r\n]*")
_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def load_json(data: bytes | str) -> Any:  # noqa: ANN401  (whatever the text holds)
    """Returns the value that a JSON text holds.

    Args:
        data: the text; bytes in UTF-8, or in UTF-16 or UTF-32 as their first bytes show.

    Raises:
        ValueError: if it is no JSON, repeats a key of an object, or is nested too deeply.
    """
    try:
        if not isinstance(data, str):
            data = data.decode(json.detect_encoding(data), "surrogatepass")
        return _STRICT_DECODER.decode(data)
    except RecursionError as error:  # a few kilobytes of "[[[[" are enough
        raise ValueError("the JSON is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the JSON is no {error.encoding} text: {error.reason}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {reason_of(error)}") from error


def reason_of(error: json.JSONDecodeError) -> str:
    """Returns one line about a mistake in a JSON text: what it is and where.

    Args:
        error: what the reader raised.
    """
    before, after = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
    place = f"character {error.colno}"
    if "\n" in error.doc.strip():
        place = f"line {error.lineno}, {place}"
    if after.startswith(",") and not after[1:].strip():
        return f"a comma follows the value ({place}); remove it"
    has_comma = before.endswith(",") or after.startswith(",")  # Python points at either side
    if has_comma and after.removeprefix(",").lstrip()[:1] in ("]", "}"):
        return f"a comma stands before the closing bracket ({place}); remove it"
    if after.startswith("'"):
        return f"JSON takes double quotes, not single ones ({place})"
    if not after:
        return f"the text ends too early ({place})"
    return f"{error.msg} ({place})"


def decode_text(data: bytes) -> str:
    """Returns a text without its byte order mark.

    Args:
        data: UTF-8, or UTF-16 or UTF-32 as the first bytes show.

    Raises:
        ValueError: if it is in none of them.
    """
    return _decode(data, json.detect_encoding(data) if has_wide_text(data) else "utf-8")


def decode_line(data: bytes) -> str:
    """Returns one line of a UTF-8 text, without the mark that the first one may begin with.

    Args:
        data: the line.

    Raises:
        ValueError: if it is no UTF-8.
    """
    return _decode(data, "utf-8")


def _decode(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"no {error.encoding} text: {error.reason} at byte {error.start}; save it as UTF-8"
        ) from error


def has_wide_text(data: bytes) -> bool:
    """Returns whether a text begins as UTF-16 or UTF-32 does: with its mark, or with zero bytes.

    Args:
        data: the first bytes of the text, four at least if it is that long.
    """
    return data.startswith(_MARKS[1:]) or (
        b"\0" in data[:4] and json.detect_encoding(data[:4]) != "utf-8"
    )


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
            key, at = _DECODER.raw_decode(text, at)
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
        return _DECODER.raw_decode(text, at)[1]
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the JSON has the key {twice!r} twice; which one counts is not clear")
    return made


_DECODER = json.JSONDecoder()
_STRICT_DECODER = json.JSONDecoder(object_pairs_hook=_object)  # to make one for each record is slow
