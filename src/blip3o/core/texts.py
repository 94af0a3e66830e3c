"""Reads text files of users: detects their encoding, and refuses repeated keys in JSON.

Errors are ValueErrors with one line about the fault of the text. The caller adds the file name.
"""

import codecs
import json
import re

LFS_START = b"version https://git-lfs.github.com/"
"""First bytes of the pointer file that git-lfs leaves in place of the real file."""

_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]')


def decode_text(data: bytes, encoding: str | None = None) -> str:
    """Returns a text without its byte order mark.

    Args:
        data: the text.
        encoding: Python's name of its encoding; None means UTF-8, or UTF-16 or UTF-32 if the first
            bytes show one of these.

    Raises:
        ValueError: if it has another encoding, is a git-lfs pointer, or holds only zero bytes.
    """
    if data.startswith(LFS_START):
        raise ValueError("it is a git-lfs pointer: fetch the file: git lfs pull")
    if data and not data.strip(b"\0"):
        raise ValueError("it holds only zero bytes, as a broken copy does: copy it again")
    if encoding is None:
        encoding = json.detect_encoding(data) if has_wide_text(data) else "utf-8"
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not {error.encoding} text: {error.reason} at byte {error.start}; save it as UTF-8"
        ) from error


def has_wide_text(data: bytes) -> bool:
    """Returns whether a text begins like UTF-16 or UTF-32: with a byte order mark or zero bytes.

    Args:
        data: the first bytes of the text: four or more, unless the whole text is shorter.
    """
    return data.startswith(_MARKS) or (
        b"\0" in data[:4] and json.detect_encoding(data[:4]) != "utf-8"
    )


def load_json(data: bytes | str) -> object:
    """Returns the value that a JSON text holds.

    Args:
        data: the text; bytes are decoded by `decode_text`.

    Raises:
        ValueError: if it is not JSON, repeats a key of an object, is nested too deeply, or holds a
            number of more than 4300 digits.
    """
    text = data if isinstance(data, str) else decode_text(data)
    try:
        return _DECODER.decode(text)
    except RecursionError as error:  # a few kilobytes of "[[[[" are enough
        raise ValueError("the JSON is nested too deeply") from error
    except _TwiceError as error:
        line, key = _second_key(text)
        place = f"line {line}: " if "\n" in text.strip() else ""
        raise ValueError(f"{place}the key {key!r} appears twice") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {reason_of(error)}") from error
    except ValueError as error:  # Python refuses longer numbers
        raise ValueError("the JSON holds a number of more than 4300 digits") from error


def reason_of(error: json.JSONDecodeError) -> str:
    """Returns one line that describes and locates a mistake in a JSON text."""
    before, after = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
    place = f"character {error.colno}"
    if "\n" in error.doc.strip():
        place = f"line {error.lineno}, {place}"
    if after.startswith(",") and not after[1:].strip():
        return f"a comma follows the value ({place}); remove it"
    # The error points before or after the comma, depending on the version of Python.
    has_comma = before.endswith(",") or after.startswith(",")
    if has_comma and after.removeprefix(",").lstrip()[:1] in ("]", "}"):
        return f"a comma precedes the closing bracket ({place}); remove it"
    if after.startswith("'"):
        return f"JSON needs double quotes, not single ones ({place})"
    if not after:
        return f"the text ends too early ({place})"
    return f"{error.msg} ({place})"


class _TwiceError(Exception):
    """An object repeats a key."""


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    read = dict(pairs)
    if len(read) < len(pairs):
        raise _TwiceError
    return read


_DECODER = json.JSONDecoder(object_pairs_hook=_object)  # building one for each record is slow


def _second_key(text: str) -> tuple[int, str]:
    """Returns the line and the name of the first key that an object repeats."""
    open_keys: list[set[str]] = []
    last: re.Match[str] | None = None
    for token in _TOKEN.finditer(text):
        match token[0]:
            case "{" | "[":
                open_keys.append(set())
            case "}" | "]":
                open_keys.pop()
            case ":" if last is not None:
                key = json.loads(last[0])
                if key in open_keys[-1]:
                    return text.count("\n", 0, last.start()) + 1, key
                open_keys[-1].add(key)
        last = token
    raise AssertionError("the decoder has found a repeated key")
