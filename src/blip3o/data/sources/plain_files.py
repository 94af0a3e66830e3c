"""Reads regular files up to a maximum size; refuses folders, pipes and devices."""

import os
import stat
from pathlib import Path

from blip3o.imaging.load import DEFAULT_LIMITS

_MORE_BYTES = 1 << 22
_SHARD_RECORDS = 2048
"""Records in a shard of a folder or a list: a multiple of a block of `RecordOrder`, so the order of
the samples is that of one long shard."""


def cut(num_records: int) -> list[range]:
    """Returns the positions of the records in each shard of a source that has no files of them."""
    starts = range(0, num_records, _SHARD_RECORDS)
    return [range(start, min(start + _SHARD_RECORDS, num_records)) for start in starts]


def read_plain(path: str | Path, max_bytes: int = DEFAULT_LIMITS.max_bytes) -> bytes:
    """Returns the bytes of a regular file.

    Args:
        path: the file; a link is followed.
        max_bytes: maximum length of the file.

    Raises:
        ValueError: if it is not a regular file or too long.
        OSError: if there is no such file or it cannot be read.
    """
    check_plain(path)  # just opening a device may have effects
    # Without blocking: a pipe may have replaced the file in the meantime.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        status = os.fstat(descriptor)
        _require_plain(path, status.st_mode)
        if status.st_size > max_bytes:
            raise ValueError(
                f"{path} is too large: {status.st_size} bytes are more than {max_bytes}"
            )
        data = piece = os.read(descriptor, status.st_size + 1)
        while piece:  # some system files report a size of 0 but are endless
            piece = os.read(descriptor, _MORE_BYTES)
            data += piece
            if len(data) > max_bytes:
                raise ValueError(f"{path} is too large: more than {max_bytes} bytes")
        return data
    finally:
        os.close(descriptor)


def check_plain(path: str | Path) -> None:
    """Refuses anything but a regular file, without opening it.

    Raises:
        ValueError: if it is a folder, a pipe, a socket or a device, or if the path is invalid.
        OSError: if there is no such file.
    """
    _require_plain(path, os.stat(path).st_mode)


def file_stamp(path: str | Path) -> str:
    """Returns size and modification time of a file, or "missing"."""
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
