"""Scalars that keep their source text until the type of their field says how to read them."""

import dataclasses
import re
import typing
from collections.abc import Mapping
from typing import Any

from blip3o.core.errors import UsageError, shown

_INT = re.compile(r"[-+]?[0-9][0-9_]*")
_MOST_EXACT = 2**53
"""From here on a float may not be not the whole number that was written."""
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """A scalar as it was written.

    Args:
        text: its characters; of a quoted one those between the quotes.
        is_plain: whether it stood without quotes, so that it may also be a number or nothing.
        nulls: the spellings that mean None to a field that takes texts or None.
    """

    text: str
    is_plain: bool = True
    nulls: tuple[str, ...] = ("null", "Null", "NULL", "~", "")

    @property
    def is_null(self) -> bool:
        """Whether it means None to a field that takes no texts."""
        return self.is_plain and self.text.strip() in ("null", "Null", "NULL", "~", "")

    @property
    def is_null_text(self) -> bool:
        """Whether it means None to a field that takes texts or None."""
        return self.is_plain and self.text in self.nulls

    def boolean(self) -> bool | None:
        """Returns the truth value that is written, in the spellings of YAML; None for others."""
        text = self.text.strip()
        word = text.lower()
        if not self.is_plain or text not in (word, word.upper(), word.capitalize()):
            return None
        return True if word in _TRUE else False if word in _FALSE else None

    def whole(self) -> int | None:
        """Returns the whole number that is written in decimal digits; None for others."""
        text = self.text.strip()
        if not self.is_plain:
            return None
        if _INT.fullmatch(text) and len(text) <= 1000:
            return _number(int, text)
        number = self.real()
        is_exact = number is not None and number.is_integer() and abs(number) < _MOST_EXACT
        return int(number) if number is not None and is_exact else None

    def real(self) -> float | None:
        """Returns the number that is written in decimal digits; None for others."""
        text = self.text.strip()
        if not text.isascii():
            return None
        if text.lstrip("+-").lower() in (".inf", ".nan"):  # as YAML writes them
            text = text.replace(".", "", 1)
        return _number(float, text)

    def __repr__(self) -> str:
        """Returns it as an error message shows it."""
        return "None" if self.is_null else repr(self.text)


def _number(kind: Any, text: str) -> Any:  # noqa: ANN401
    try:
        return kind(text)
    except ValueError:
        return None


def convert(hint: Any, value: Text, path: str) -> Any:  # noqa: ANN401
    """Returns the value that a text has in a field.

    Args:
        hint: the field's type: str, int, float, bool, a Literal, or Any.
        value: the text.
        path: the field, for error messages.

    Raises:
        UsageError: if the text is no such value.
    """
    if hint is str and not (value.is_null_text and not value.text):  # `name:` has no value in YAML
        return value.text
    if typing.get_origin(hint) is typing.Literal:
        options = typing.get_args(hint)
        found = next((text for text in (value.text, value.text.strip()) if text in options), None)
        if found is None:
            raise UsageError(f"{path} must be one of {list(options)}, got {shown(value)}")
        return found
    if hint in _READERS:
        read = _READERS[hint](value)
        if read is not None:
            return read
    if hint is Any or hint is object:
        return guessed(value)
    advice = "in decimal digits" if value.is_plain else "without quotes"
    note = f"; write it {advice}" if hint in _READERS and not value.is_null else ""
    note = "; write true or false" if hint is bool and value.is_plain else note
    raise UsageError(f"{path} must be {getattr(hint, '__name__', hint)}, got {shown(value)}{note}")


_READERS = {bool: Text.boolean, int: Text.whole, float: Text.real}


def convert_plain(hint: Any, value: Any, path: str) -> Any:  # noqa: ANN401
    """Returns the value that a scalar of JSON or Python has in a field.

    Args:
        hint: as for `convert`.
        value: the scalar.
        path: as for `convert`.

    Raises:
        UsageError: if it is of another type.
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
    raise UsageError(f"{path} must be {getattr(hint, '__name__', hint)}, got {shown(value)}")


def guessed(value: Any) -> Any:  # noqa: ANN401
    """Returns data with its texts as what they look like: nothing, truth, a number or a text.

    Args:
        value: dicts, lists, `Text`s and scalars, for a field that says no type.
    """
    if isinstance(value, Mapping):
        return {key: guessed(one) for key, one in value.items()}
    if isinstance(value, list):
        return [guessed(one) for one in value]
    if not isinstance(value, Text) or not value.is_plain:
        return value.text if isinstance(value, Text) else value
    if value.is_null:
        return None
    if value.text in ("true", "false"):
        return value.text == "true"
    if not any(letter.isdigit() for letter in value.text):
        return value.text
    number = value.whole() if value.text.lstrip("+-").isdecimal() else value.real()
    return value.text if number is None else number


def as_written(value: Any) -> str:  # noqa: ANN401
    """Returns a setting's value as `path=value` takes it.

    Args:
        value: plain data.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
