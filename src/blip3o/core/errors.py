"""Errors that a user can cause and fix; any other error is a bug and keeps its traceback."""

import difflib
import errno
import os
import re
from collections.abc import Iterable, Mapping


class UsageError(Exception):
    """A request that cannot be fulfilled: one line with the fault and its remedy.

    The command line prints the message and exits with status 2.
    """


class NotFiniteError(ValueError):
    """A model has produced NaN or infinity."""


class PreemptedError(Exception):
    """Work stopped early, at a signal or a cap; the same command resumes it. Exit status 75."""


class HttpError(Exception):
    """An error to send as the answer to an HTTP request.

    Args:
        status: HTTP status.
        message: the fault and its remedy.
        param: name of the invalid field.
        code: error code for programs.
        headers: additional headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


_LONGEST_SHOWN = 100
"""Most characters of a value in a message."""


def shown(value: object) -> str:
    """Returns the representation of a user's value for a message, cut if it is long."""
    text = repr(value)
    if len(text) <= _LONGEST_SHOWN:
        return text
    return f"{text[:_LONGEST_SHOWN]}... ({len(text):,} characters)"


def unknown_name(what: str, name: str, known: Iterable[str]) -> UsageError:
    """Returns the error for a name that is not in a table, with the nearest known names.

    Args:
        what: kind of the name, e.g. "recipe".
        name: the name as the user wrote it.
        known: all accepted names.
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return UsageError(f"unknown {what} {shown(name)}; {hint}")


_CHOOSE = "choose another path"
_PLACE_TROUBLES = {
    errno.ENOSPC: f"the disk is full; free some space or {_CHOOSE}",
    errno.EDQUOT: f"your disk quota is used up; free some space or {_CHOOSE}",
    errno.EFBIG: f"the file is larger than this disk allows; {_CHOOSE}",
    errno.EROFS: f"the disk is read-only; {_CHOOSE}",
    errno.EIO: f"the disk or its connection fails; {_CHOOSE}",
}
_NAME_TROUBLES = {
    errno.EACCES: f"permission denied; request permission or {_CHOOSE}",
    errno.EPERM: f"this is not permitted; {_CHOOSE}",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ENOENT: f"no such file or folder, and it cannot be created; {_CHOOSE}",
    errno.ENOTDIR: f"a part of the path is a file, not a folder; {_CHOOSE}",
    errno.EISDIR: "it is a folder; give the name of a file",
    errno.EEXIST: "it already exists; choose another name",
    errno.ENOTEMPTY: "the folder is not empty; choose another one",
    errno.ELOOP: f"its symbolic links form a loop; {_CHOOSE}",
    errno.EBUSY: f"it is in use; {_CHOOSE}",
    errno.EINVAL: f"the name is not valid there; {_CHOOSE}",
}
"""Reasons that apply only to errors with a file name: sockets use some of these numbers too."""

_OS_NUMBER = re.compile(r"\(os error (\d+)\)")


def place_trouble(error: BaseException) -> UsageError | None:
    """Returns the error for a file or folder that cannot be used; None for other failures.

    Args:
        error: an `OSError`, or an error of a library that quotes the number of a system error, as
            libraries written in Rust do.
    """
    if not isinstance(error, OSError):
        number = quoted_number(error)
        if number not in _PLACE_TROUBLES:
            return None
        return UsageError(f"a file cannot be written: {_PLACE_TROUBLES[number]}")
    number, name = error.errno, error.filename2 or error.filename
    reasons = _PLACE_TROUBLES if name is None else _PLACE_TROUBLES | _NAME_TROUBLES
    if number not in reasons:
        return None
    place = "a file" if name is None else os.fsdecode(name) if not isinstance(name, int) else name
    return UsageError(f"cannot use {place}: {reasons[number]}")


def quoted_number(error: BaseException) -> int | None:
    """Returns the system error number in the text of a library's error, or None."""
    quoted = _OS_NUMBER.search(str(error))
    return None if quoted is None else int(quoted[1])


def first_line(error: BaseException) -> str:
    """Returns the first line of the text of an error, or its class name if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def reason_of(error: OSError) -> str:
    """Returns why a file or folder cannot be used, for a message that already names it."""
    reasons = _PLACE_TROUBLES | _NAME_TROUBLES
    return reasons.get(error.errno or 0) or error.strerror or str(error)
