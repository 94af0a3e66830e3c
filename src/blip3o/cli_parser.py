"""L7: how the command line is read: words in any order, and one line for what is wrong."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from blip3o.core.errors import UsageError, shown, unknown_name
from blip3o.core.files import expanded
from blip3o.core.scalars import Text

EXIT_USAGE = 2


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; help tells more than fits into the list of options.

    Attributes:
        details: returns what help says after the options; None for nothing.
    """

    details: Callable[[], str] | None = None

    def error(self, message: str) -> NoReturn:
        """Ends the process with a line that says what is wrong."""
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message} (--help shows the options)\n")

    def format_help(self) -> str:
        """Returns the options and the details."""
        details = self.details
        return super().format_help() + ("" if details is None else f"\n{details()}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:  # noqa: ANN401
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            raise argparse.ArgumentError(None, str(unknown_name("command", value, action.choices)))
        super()._check_value(action, value)


class CommandParser(Parser):
    """Takes words and options in any order: `train NAME --out DIR path=value`."""

    _is_intermixed = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # noqa: ANN401
        """Returns the options of a command and the words that it does not know."""
        # argparse comes back here for the second half; a parser of commands hands all on.
        if self._is_intermixed or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._is_intermixed = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_intermixed = False


def path_text(text: str) -> str:
    """Returns the value of an option as a path or a pattern, with a leading `~` as the home folder.

    Args:
        text: as the user wrote it.

    Raises:
        argparse.ArgumentTypeError: if it is empty or there is no such home folder.
    """
    try:
        return expanded(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def path(text: str) -> Path:
    """Returns the value of an option as a path.

    Args:
        text: as for `path_text`.

    Raises:
        argparse.ArgumentTypeError: as `path_text`.
    """
    return Path(path_text(text))


def whole(text: str) -> int:
    """Returns the value of an option as a whole number.

    Args:
        text: decimal digits, as settings take them.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    number = Text(text).whole()
    if number is None:
        raise argparse.ArgumentTypeError(f"invalid int value: {shown(text)}; give a whole number")
    return number


def real(text: str) -> float:
    """Returns the value of an option as a number.

    Args:
        text: decimal digits, as settings take them.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    number = Text(text).real()
    if number is None:
        raise argparse.ArgumentTypeError(f"invalid float value: {shown(text)}; give a number")
    return number


def count(text: str) -> int:
    """Returns the value of an option as a whole number above zero.

    Args:
        text: as for `whole`.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    number = whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"it must be at least 1, got {text}")
    return number
