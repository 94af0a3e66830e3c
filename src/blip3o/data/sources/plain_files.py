"""Reads files that users name: ordinary ones up to a size, never a pipe, a device or a folder."""

import os
import stat
from pathlib import Path

from blip3o.imaging.load import DEFAULT_LIMITS


def read_plain(path: str | Path, max_bytes: int = DEFAULT_LIMITS.max_bytes) -> bytes:
    """Returns the bytes of an ordinary file.

    Args:
        path: the file; a link is followed.
        max_bytes: longest file that is read.

    Raises:
        ValueError: if it is no ordinary file, or too long.
        OSError: if there is no such file or it cannot be read.
    """
    check_plain(path)
    # Without waiting: a pipe that took the file's place in the meantime would never answer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path} is not an ordinary file")
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise ValueError(f"{path} is too large: {size} bytes are more than {max_bytes}")
        return file.read(max_bytes)


def check_plain(path: str | Path) -> None:
    """Refuses what is no ordinary file, without opening it.

    Args:
        path: the file; a link is followed.

    Raises:
        ValueError: if it is a folder, a pipe, a socket or a device, or no name of a file.
        OSError: if there is no such file.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise ValueError(f"{path} is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is not an ordinary file")
