"""Reads files that users name: ordinary ones up to a size, never a pipe, a device or a folder."""

import os
import stat
from pathlib import Path

from blip3o.imaging.load import DEFAULT_LIMITS

_MORE_BYTES = 1 << 22


def read_plain(path: str | Path, max_bytes: int = DEFAULT_LIMITS.max_bytes) -> bytes:
    """Returns the bytes of an ordinary file.

    Args:
        path: the file; a link is followed.
        max_bytes: longest file that is read.

    Raises:
        ValueError: if it is no ordinary file, or too long.
        OSError: if there is no such file or it cannot be read.
    """
    check_plain(path)  # opening a device may do something
    # Without waiting: a pipe that took the file's place in the meantime would never answer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        status = os.fstat(descriptor)
        _require_plain(path, status.st_mode)
        if status.st_size > max_bytes:
            raise ValueError(
                f"{path} is too large: {status.st_size} bytes are more than {max_bytes}"
            )
        data = piece = os.read(descriptor, status.st_size + 1)
        while piece:  # some files of the system say that they are empty, and are endless
            piece = os.read(descriptor, _MORE_BYTES)
            data += piece
            if len(data) > max_bytes:
                raise ValueError(f"{path} is too large: more than {max_bytes} bytes")
        return data
    finally:
        os.close(descriptor)


def check_plain(path: str | Path) -> None:
    """Refuses what is no ordinary file, without opening it.

    Args:
        path: the file; a link is followed.

    Raises:
        ValueError: if it is a folder, a pipe, a socket or a device, or no name of a file.
        OSError: if there is no such file.
    """
    _require_plain(path, os.stat(path).st_mode)


def file_stamp(path: str | Path) -> str:
    """Returns size and time of the last change of a file, "missing" if there is none.

    Args:
        path: the file; a link is followed.
    """
    try:
        status = os.stat(path)
    except OSError:
        return "missing"
    return f"{status.st_size}/{status.st_mtime_ns}"


def _require_plain(path: str | Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise ValueError(f"{path} is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is not an ordinary file")
