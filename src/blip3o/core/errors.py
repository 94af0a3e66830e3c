"""Errors that a user can cause and mend; everything else is a bug and keeps its traceback."""

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """A request that cannot be met as asked: one line that says what is wrong and what to do.

    The command line prints the message and exits with status 2.
    """


class NotFiniteError(ValueError):
    """A model gives values that are not numbers (NaN or infinity)."""


class PreemptedError(Exception):
    """Training stopped early after saving a checkpoint that resumes; exit status 75."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> UsageError:
    """Returns the error for a name that is not in a table, with the nearest known names.

    Args:
        what: what kind of thing was asked for, e.g. "recipe".
        name: the name as the user gave it.
        known: all names that would have been accepted.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return UsageError(f"unknown {what} {name!r}; {hint}")
