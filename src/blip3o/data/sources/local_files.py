"""Local files, which are read in ranges and written whole."""

import collections
import dataclasses
import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from blip3o.core.files import atomic_file

_MAX_OPEN_FILES = 256
"""Maximum number of open local files; processes are often limited to 1024."""
_FILE_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FileStamp:
    """Identifies a version of a file.

    Args:
        size: length in bytes.
        tag: modification time or the server's tag; empty if the server gives none.
    """

    size: int
    tag: str


class LocalFiles:
    """Local files, kept open.

    Forked workers can share the open files, because positional reads do not move a file pointer.
    """

    def __init__(self) -> None:
        self._open: collections.OrderedDict[str, int] = collections.OrderedDict()
        self._mutex = threading.Lock()  # no thread closes a file while another one reads it

    def stamp(self, path: str) -> FileStamp:
        """Returns size and modification time; OSError if there is no such regular file."""
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # reading it might block or never end
            kind = next((name for test, name in _FILE_KINDS if test(status.st_mode)), "special")
            raise OSError(errno.EINVAL, f"it is {kind}, not a regular file")
        return FileStamp(size=status.st_size, tag=str(status.st_mtime_ns))

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Returns the bytes of a range; OSError if there is no such file."""
        with self._mutex:
            return os.pread(self._descriptor(path), size, offset)

    def sizes(self, folder: str) -> dict[str, int]:
        """Returns the size of each file in a folder by its name; nothing without a folder."""
        try:
            with os.scandir(folder) as entries:
                return {one.name: one.stat().st_size for one in entries if one.is_file()}
        except FileNotFoundError:
            return {}

    @contextmanager
    def writing(self, path: str) -> Iterator[IO[bytes]]:
        """Yields a file that is stored as `path` when the block ends: whole, or not at all."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with atomic_file(Path(path)) as scratch, scratch.open("wb") as file:
            yield file

    def remove(self, path: str) -> None:
        """Removes a file."""
        os.unlink(path)

    def _descriptor(self, path: str) -> int:
        found = self._open.get(path)
        if found is None:
            if len(self._open) >= _MAX_OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            # Without blocking: a pipe may have replaced the file.
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
            found = self._open[path] = os.open(path, flags)
        self._open.move_to_end(path)
        return found

    def __reduce__(self) -> tuple[type["LocalFiles"], tuple[()]]:
        return LocalFiles, ()

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
