"""Locks that the system frees when their process ends, however it ends: none is ever stale.

A lock is a file that stays where it is; whoever holds it has its name in it. `flock` also works
between machines on file systems that pass it on (NFS, Lustre with `-o flock`, GPFS). On one that
knows no locks a warning says so.
"""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from blip3o.core.errors import UsageError
from blip3o.core.log import say

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_NOTE_BYTES = 4096

_open: set[int] = set()
"""File descriptors of the locks that this process holds or waits for."""


@contextmanager
def locked(file: Path, refusal: str | None = None) -> Iterator[None]:
    """Holds a lock while the block runs.

    Args:
        file: the lock; created if missing. Its folder must exist.
        refusal: what to say if another process holds the lock; its process id and machine stand
            before it. None waits for the other process.

    Raises:
        UsageError: if another process holds the lock and `refusal` is given, or the file cannot be
            written.
    """
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}") from error
    _open.add(descriptor)
    try:
        _take(descriptor, file, refusal)
        _note(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        try:
            yield
        finally:
            _note(descriptor, "")
    finally:
        if descriptor in _open:  # else this is a forked process, which has closed it
            _open.discard(descriptor)
            os.close(descriptor)


def _take(descriptor: int, file: Path, refusal: str | None) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(descriptor)
        if refusal is not None:
            raise UsageError(f"{holder} {refusal}") from None
        say(f"waiting for {holder}, which holds {file}")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise UsageError(f"cannot lock {file}: {error.strerror}") from error
        say(
            f"warning: the file system of {file.parent} knows no locks; "
            "take care that only one process at a time writes there"
        )


def _holder(descriptor: int) -> str:
    """Returns who holds a lock, as its file says."""
    try:
        note = json.loads(os.pread(descriptor, _NOTE_BYTES, 0))
        return f"process {int(note['pid'])} on {note['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has only just taken the lock
        return "another process"


def _note(descriptor: int, text: str) -> None:
    """Writes who holds a lock; on a full disk the lock holds without a name."""
    if descriptor not in _open:
        return
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _close_in_child() -> None:
    """Closes the locks in a forked process: it would hold them on when its parent is killed."""
    for descriptor in _open:
        with suppress(OSError):
            os.close(descriptor)
    _open.clear()


os.register_at_fork(after_in_child=_close_in_child)
