"""L7: the parsers of the command line: arguments in any order, errors in one line."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from blip3o.core.errors import UsageError, shown, unknown_name
from blip3o.core.files import expanded
from blip3o.core.scalars import Text

EXIT_USAGE = 2


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line and may append details to its help.

    Attributes:
        details: returns the text after the options; None for no text.
    """

    details: Callable[[], str] | None = None

    def error(self, message: str) -> NoReturn:
        """Prints the error in one line and exits."""
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message} (--help shows the options)\n")

    def format_help(self) -> str:
        """Returns the help with the details appended."""
        details = self.details
        return super().format_help() + ("" if details is None else f"\n{details()}\n")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            unknown = unknown_name("command", str(value), action.choices)
            raise argparse.ArgumentError(None, str(unknown))
        super()._check_value(action, value)


class CommandParser(Parser):
    """Takes positional arguments and options in any order: `train NAME --out DIR path=value`."""

    _is_intermixed = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # noqa: ANN401
        """Returns the parsed options and the unknown arguments."""
        # Intermixed parsing calls this method again and does not support subcommands.
        if self._is_intermixed or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._is_intermixed = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_intermixed = False


def path_text(text: str) -> str:
    """Returns a path or pattern with a leading `~` replaced by the home folder.

    Raises:
        argparse.ArgumentTypeError: if the text is empty or the home folder does not exist.
    """
    try:
        return expanded(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def path(text: str) -> Path:
    """Returns the result of `path_text` as a path."""
    return Path(path_text(text))


def whole(text: str) -> int:
    """Returns the integer in a text, which has the same form as in settings."""
    number = Text(text).whole()
    if number is None:
        raise argparse.ArgumentTypeError(f"invalid int value: {shown(text)}; give a whole number")
    return number


def real(text: str) -> float:
    """Returns the number in a text, which has the same form as in settings."""
    number = Text(text).real()
    if number is None:
        raise argparse.ArgumentTypeError(f"invalid float value: {shown(text)}; give a number")
    return number


def count(text: str) -> int:
    """Returns the positive integer in a text."""
    number = whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number
