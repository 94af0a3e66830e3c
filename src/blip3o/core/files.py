"""Files and folders that appear under their names only when they are whole.

They are written under a scratch name beside the place, flushed to the disk and renamed. What a
killed process leaves behind is hidden (`.NAME.part`) and goes at the next try.
"""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomic(path: Path, content: bytes | str, *, is_shared: bool = False) -> None:
    """Writes a file whole or not at all.

    Args:
        path: where to; replaced. Its folder must exist.
        content: bytes, or text to be written as UTF-8.
        is_shared: several processes may write it at once; the last one wins.
    """
    with atomic_file(path, is_shared=is_shared) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path, *, is_shared: bool = False) -> Iterator[Path]:
    """Yields a scratch file to write; it becomes `path` at the end, or goes if anything fails.

    Args:
        path: as in `write_atomic`.
        is_shared: as in `write_atomic`.
    """
    writer = f".{socket.gethostname()}.{os.getpid()}" if is_shared else ""
    scratch = path.with_name(f".{path.name}{writer}.part")
    try:
        yield scratch
        flush(scratch)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a scratch folder to fill; it becomes `path` at the end, or goes if anything fails.

    Args:
        path: where to; an empty folder there is replaced, its parents are created.

    Raises:
        OSError: if there is a folder with something in it.
    """
    path = path.absolute()
    scratch = path.with_name(f".{path.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    try:
        scratch.mkdir(parents=True)
        yield scratch
        for one in (*scratch.rglob("*"), scratch):
            flush(one)
        os.replace(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
