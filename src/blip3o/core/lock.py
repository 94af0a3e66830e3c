"""File locks that the system releases when their process ends in any way, so none becomes stale.

A lock is a file that names its holder. The file is removed with the lock; the file of a killed
process has no effect. `flock` also works between machines on file systems that support it (NFS,
Lustre with `-o flock`, GPFS). On a file system without locks, a warning is printed.
"""

import errno
import fcntl
import json
import multiprocessing
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from blip3o.core.errors import UsageError, reason_of
from blip3o.core.log import say


class HeldError(UsageError):
    """Another process holds a lock."""


_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY}
_NOTE_BYTES = 4096

_open: set[int] = set()
"""File descriptors of the locks that this process holds or waits for."""


@contextmanager
def locked(file: Path, refusal: str | None = None) -> Iterator[None]:
    """Holds a lock while the block runs.

    Args:
        file: the lock; created if missing. Its folder must exist.
        refusal: error message if another process holds the lock; "process N on HOST" is inserted
            before it. None means to wait for that process.

    Raises:
        HeldError: if another process holds the lock and `refusal` is given.
        UsageError: if the file cannot be written, or a worker process waits while it imports an
            unguarded script.
    """
    descriptor = _open_lock(file)
    try:
        while not _take(descriptor, file, refusal):
            _close(descriptor)
            descriptor = _open_lock(file)
        _note(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        try:
            yield
        finally:
            if descriptor in _open and _is_there(descriptor, file):
                with suppress(OSError):
                    file.unlink()  # still locked, so a waiting process checks the file again
    finally:
        _close(descriptor)


def _open_lock(file: Path) -> int:
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UsageError(f"cannot write {file}: {reason_of(error)}") from error
    _open.add(descriptor)
    return descriptor


def _close(descriptor: int) -> None:
    if descriptor in _open:  # a forked process has closed it already
        _open.discard(descriptor)
        os.close(descriptor)


def _take(descriptor: int, file: Path, refusal: str | None) -> bool:
    """Takes a lock; returns whether its file still exists: the last holder may have removed it."""
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # errors for a held lock on network disks
            holder = _holder(descriptor)
            if refusal is not None:
                raise HeldError(f"{holder} {refusal}") from None
            if _runs_the_script_again():
                raise UsageError(
                    "a worker process ran this script again while it was starting: "
                    'call blip3o under `if __name__ == "__main__":`'
                ) from None
            say(f"waiting for {holder}, which holds {file}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise UsageError(f"cannot lock {file}: {reason_of(error)}") from error
        say(
            f"warning: the file system of {file.parent} does not support locks; "
            "make sure that only one process at a time writes there"
        )
        return True
    return _is_there(descriptor, file)


def _runs_the_script_again() -> bool:
    """Returns whether a started worker process is still importing the main script.

    Its parent waits for it, so waiting for a lock of the parent would never end. `multiprocessing`
    refuses to start further processes at this point by the same attribute.
    """
    return getattr(multiprocessing.current_process(), "_inheriting", False)


def _is_there(descriptor: int, file: Path) -> bool:
    """Returns whether the file of a lock still exists under its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except OSError:
        return False


def _holder(descriptor: int) -> str:
    """Returns the holder of a lock according to its file."""
    try:
        note = json.loads(os.pread(descriptor, _NOTE_BYTES, 0))
        return f"process {int(note['pid'])} on {note['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # the holder has not written its note yet
        return "another process"


def _note(descriptor: int, text: str) -> None:
    """Writes the holder into the file of a lock; on a full disk the lock works without it."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _close_in_child() -> None:
    """Closes the locks in a forked process, which would keep them after its parent is killed."""
    for descriptor in _open:
        with suppress(OSError):
            os.close(descriptor)
    _open.clear()


os.register_at_fork(after_in_child=_close_in_child)
