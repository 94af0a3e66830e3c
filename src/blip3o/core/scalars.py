"""Scalars keep their source text until the type of their field decides how to read them."""

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from blip3o.core.errors import UsageError, shown

T = TypeVar("T")

_INT = re.compile(r"[-+]?[0-9][0-9_]*")
_MOST_EXACT = 2**53
"""From this magnitude on, a float may differ from the integer that was written."""
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
_NULLS = ("null", "Null", "NULL", "~", "")


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """A scalar as it was written.

    Args:
        text: its characters, without the quotes of a quoted scalar.
        is_plain: whether it had no quotes, so that it may also be a number or None.
        nulls: the spellings that mean None in a field that accepts texts or None.
    """

    text: str
    is_plain: bool = True
    nulls: tuple[str, ...] = _NULLS

    @property
    def is_null(self) -> bool:
        """Whether it means None in a field that does not accept texts."""
        return self.is_plain and self.text.strip() in _NULLS

    @property
    def is_null_text(self) -> bool:
        """Whether it means None in a field that accepts texts or None."""
        return self.is_plain and self.text in self.nulls

    def boolean(self) -> bool | None:
        """Returns the truth value, in the spellings of YAML; None if it is not one."""
        text = self.text.strip()
        word = text.lower()
        if not self.is_plain or text not in (word, word.upper(), word.capitalize()):
            return None
        return True if word in _TRUE else False if word in _FALSE else None

    def whole(self) -> int | None:
        """Returns the integer written in decimal digits; None if it is not one."""
        text = self.text.strip()
        if not self.is_plain:
            return None
        if _INT.fullmatch(text) and len(text) <= 1000:
            return _number(int, text)
        number = self.real()
        is_exact = number is not None and number.is_integer() and abs(number) < _MOST_EXACT
        return int(number) if number is not None and is_exact else None

    def real(self) -> float | None:
        """Returns the number written in decimal digits; None if it is not one."""
        text = self.text.strip()
        if not text.isascii():
            return None
        if text.lstrip("+-").lower() in (".inf", ".nan"):  # as YAML writes them
            text = text.replace(".", "", 1)
        return _number(float, text)

    def __repr__(self) -> str:
        """Returns the scalar as an error message shows it."""
        return "None" if self.is_null else repr(self.text)


def _number(kind: Callable[[str], T], text: str) -> T | None:
    try:
        return kind(text)
    except ValueError:
        return None


def convert(hint: object, value: Text, path: str) -> object:
    """Returns the value of a text in a field.

    Args:
        hint: the type of the field: str, int, float, bool, a Literal, or Any.
        value: the text.
        path: dotted path of the field, for error messages.

    Raises:
        UsageError: if the text is not a value of that type.
    """
    if hint is str and not (value.is_null_text and not value.text):  # `name:` has no value in YAML
        return value.text
    if typing.get_origin(hint) is typing.Literal:
        is_known = value.text in typing.get_args(hint)
        return convert_plain(hint, value.text if is_known else value.text.strip(), path)
    reader = _READERS.get(hint)
    if reader is not None and (read := reader(value)) is not None:
        return read
    if hint is Any or hint is object:
        return guessed(value)
    advice = "in decimal digits" if value.is_plain else "without quotes"
    note = f"; write it {advice}" if reader is not None and not value.is_null else ""
    note = "; write true or false" if hint is bool and value.is_plain else note
    raise UsageError(f"{path} must be {_name_of(hint)}, got {shown(value)}{note}")


_READERS: dict[object, Callable[[Text], object]]
_READERS = {bool: Text.boolean, int: Text.whole, float: Text.real}


def _name_of(hint: object) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def convert_plain(hint: object, value: object, path: str) -> object:
    """Returns the value of a scalar from JSON or Python in a field; see `convert`.

    Raises:
        UsageError: if the scalar has another type.
    """
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # JSON and Python may hold 1e-4 as a text
        try:
            return float(value)
        except ValueError:
            pass
    if hint is int and isinstance(value, float) and float(value).is_integer():
        return int(value)
    if hint is Any or hint is object:
        return guessed(value)
    if typing.get_origin(hint) is typing.Literal:
        if value in typing.get_args(hint):
            return value
        raise UsageError(f"{path} must be one of {list(typing.get_args(hint))}, got {shown(value)}")
    if isinstance(hint, type) and isinstance(value, hint):
        if hint is int and isinstance(value, bool):
            raise UsageError(f"{path} must be int, got {shown(value)}")
        return value
    raise UsageError(f"{path} must be {_name_of(hint)}, got {shown(value)}")


def guessed(value: object) -> object:
    """Returns data for a field without a type: each `Text` becomes None, a bool, a number or a str.

    Args:
        value: dicts, lists, `Text`s and scalars.
    """
    if isinstance(value, Mapping):
        return {key: guessed(one) for key, one in value.items()}
    if isinstance(value, list):
        return [guessed(one) for one in value]
    if not isinstance(value, Text):
        return value
    if not value.is_plain:
        return value.text
    if value.is_null:
        return None
    if value.text in ("true", "false"):
        return value.text == "true"
    if not any(letter.isdigit() for letter in value.text):
        return value.text
    number = value.whole() if value.text.lstrip("+-").isdecimal() else value.real()
    return value.text if number is None else number


def as_written(value: object) -> str:
    """Returns the value of a setting, plain data, in the form that `path=value` accepts."""
    if value is None:
        return "null"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(as_written, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
