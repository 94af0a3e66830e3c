"""Byte ranges of files wherever they are: a disk, an HTTP server, or anything fsspec knows.

A path without "://" is a local file. `http(s)://` is read with range requests over kept
connections; `s3://`, `gs://`, `hf://datasets/...` and the rest go through fsspec, whose plug-in
(s3fs, gcsfs, huggingface_hub) must be installed. What fails for a moment is tried again with
growing pauses; what stays away stops the run with one line, for a sample is not bad because the
network is.
"""

import collections
import dataclasses
import glob
import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from blip3o.core.errors import UsageError
from blip3o.core.log import say

T = TypeVar("T")

RETRY_DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses before each further attempt at a remote read."""
_TIMEOUT_S = 30.0
_MAX_OPEN_FILES = 256
"""Most local files held open at once; a process may often open no more than 1024."""
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


class _TransientError(Exception):
    """Worth another attempt."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FileStamp:
    """What tells one version of a file from another.

    Args:
        size: length in bytes.
        tag: time of the last change, or the server's tag; empty if it gives none.
    """

    size: int
    tag: str


class Files(Protocol):
    """Somewhere files are. Remote ones may be read from several threads, and after a fork."""

    def stamp(self, path: str) -> FileStamp:
        """Returns size and version of a file."""
        ...

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Returns the bytes of a range; fewer where the file ends before."""
        ...


def is_remote(path: str) -> bool:
    """Returns whether a path is an address rather than a local file.

    Args:
        path: path or address.
    """
    return "://" in path


def files_of(path: str) -> Files:
    """Returns what reads a path, and others of its kind.

    Args:
        path: path or address.
    """
    if path.startswith(("http://", "https://")):
        return _HTTP
    return _FSSPEC if is_remote(path) else LocalFiles()


def read_file(path: str) -> bytes:
    """Returns a whole file.

    Args:
        path: path or address.

    Raises:
        OSError: if a local file cannot be read.
        UsageError: if a remote file cannot be read, after several attempts.
    """
    files = files_of(path)
    return files.read(path, 0, files.stamp(path).size)


def expand(pattern: str) -> list[str]:
    """Returns the files that a pattern names, sorted.

    Args:
        pattern: "data/{0000..0099}.tar" counts; "*", "?" and "[0-9]" match, except over HTTP,
            where nothing can be listed.

    Raises:
        UsageError: for a match over HTTP, or a store that cannot be listed.
    """
    counted = _BRACES.search(pattern)
    if counted:
        first, last = counted.groups()
        names = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
        head, tail = pattern[: counted.start()], pattern[counted.end() :]
        found = (path for name in names for path in expand(f"{head}{name}{tail}"))
        return list(dict.fromkeys(found))  # "{1..12}*.tar" finds 12.tar twice
    if not is_remote(pattern):
        return sorted(glob.glob(pattern))
    if not any(mark in pattern for mark in "*?["):
        return [pattern]
    if pattern.startswith(("http://", "https://")):
        raise UsageError(f"an HTTP server lists no files: write {pattern} with {{0000..0099}}")
    return _FSSPEC.glob(pattern)


def private_path(path: str, suffix: str) -> Path:
    """Returns where something about a file is kept that cannot be kept beside it.

    Args:
        path: path or address.
        suffix: ending of the name.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = hashlib.sha256((path if is_remote(path) else os.path.abspath(path)).encode()).hexdigest()
    return Path(base) / "blip3o" / "index" / f"{key[:24]}{suffix}"


class LocalFiles:
    """Files of this machine, held open; for one thread of a process.

    Positional reads share well: a forked worker goes on with the same open files.
    """

    def __init__(self) -> None:
        self._open: collections.OrderedDict[str, int] = collections.OrderedDict()

    def stamp(self, path: str) -> FileStamp:
        """Returns size and time of the last change; OSError if there is no such file."""
        status = os.stat(path)
        return FileStamp(size=status.st_size, tag=str(status.st_mtime_ns))

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Returns the bytes of a range; OSError if there is no such file."""
        return os.pread(self._descriptor(path), size, offset)

    def _descriptor(self, path: str) -> int:
        found = self._open.get(path)
        if found is None:
            if len(self._open) >= _MAX_OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            found = self._open[path] = os.open(path, os.O_RDONLY)
        self._open.move_to_end(path)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"_open": collections.OrderedDict()}

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


class _HttpFiles:
    def __init__(self) -> None:
        self._clients: dict[int, Any] = {}  # by process: a connection must not cross a fork

    def __getstate__(self) -> dict[str, Any]:
        return {"_clients": {}}

    def stamp(self, path: str) -> FileStamp:
        # A request for one byte, not HEAD: it also shows whether ranges are served at all.
        response = _persist(path, lambda: self._get(path, 0, 1))
        total = response.headers.get("content-range", "").rpartition("/")[2]
        if not total.isdecimal():
            raise UsageError(f"{path}: the server does not say how long it is")
        tag = response.headers.get("etag") or response.headers.get("last-modified") or ""
        return FileStamp(size=int(total), tag=tag)

    def read(self, path: str, offset: int, size: int) -> bytes:
        if size == 0:
            return b""
        response = _persist(path, lambda: self._get(path, offset, size))
        return response.content if response.status_code == 206 else b""

    def _get(self, path: str, offset: int, size: int) -> Any:  # noqa: ANN401  (httpx is lazy)
        import httpx

        client = self._clients.get(os.getpid())
        if client is None:
            self._clients.clear()
            client = httpx.Client(timeout=_TIMEOUT_S, follow_redirects=True)
            self._clients[os.getpid()] = client
        wanted = {"range": f"bytes={offset}-{offset + size - 1}", "accept-encoding": "identity"}
        try:
            with client.stream("GET", path, headers=wanted) as response:
                status = response.status_code
                if status in (408, 425, 429) or status >= 500:
                    raise _TransientError(f"HTTP {status}")
                if status == 200:  # the whole file: not to be read
                    raise UsageError(f"{path}: the server ignores range requests")
                if status not in (206, 416):
                    raise UsageError(f"cannot read {path}: HTTP {status}")
                response.read()
                return response
        except httpx.TransportError as error:
            raise _TransientError(str(error) or type(error).__name__) from error


class _FsspecFiles:
    def stamp(self, path: str) -> FileStamp:
        system, inner = self._find(path)
        info = _persist(path, lambda: self._ask(path, lambda: system.info(inner)))
        names = ("ETag", "etag", "blob_id", "LastModified", "mtime", "created")
        tag = next((str(info[name]) for name in names if info.get(name)), "")
        return FileStamp(size=int(info["size"]), tag=tag)

    def read(self, path: str, offset: int, size: int) -> bytes:
        system, inner = self._find(path)
        end = offset + size
        return _persist(path, lambda: self._ask(path, lambda: system.cat_file(inner, offset, end)))

    def glob(self, pattern: str) -> list[str]:
        """Returns the addresses a pattern matches, sorted."""
        system, inner = self._find(pattern)
        found = _persist(pattern, lambda: self._ask(pattern, lambda: system.glob(inner)))
        return sorted(system.unstrip_protocol(one) for one in found)

    @staticmethod
    def _find(path: str) -> tuple[Any, str]:
        try:
            from fsspec.core import url_to_fs

            return url_to_fs(path)
        except (ImportError, ValueError) as error:  # no plug-in; an unknown protocol
            raise UsageError(f"cannot read {path}: {error}") from error

    @staticmethod
    def _ask(path: str, function: Callable[[], T]) -> T:
        try:
            return function()
        except FileNotFoundError as error:
            raise UsageError(f"no such file: {path}") from error
        except (PermissionError, NotImplementedError) as error:
            raise UsageError(f"cannot read {path}: {error}") from error
        except Exception as error:  # each plug-in has its own for a broken connection
            raise _TransientError(str(error) or type(error).__name__) from error


def _persist(path: str, function: Callable[[], T]) -> T:
    """Returns what a function returns, tried again after pauses while it fails for a moment."""
    for delay_s in (*RETRY_DELAYS_S, None):
        try:
            return function()
        except _TransientError as error:
            if delay_s is None:
                raise UsageError(
                    f"{path} cannot be reached, {len(RETRY_DELAYS_S) + 1} attempts: {error}; "
                    "the same command goes on when it can"
                ) from error
            say(f"warning: {path}: {error}; again in {delay_s:g} s")
            time.sleep(delay_s)
    raise AssertionError("the last attempt returns or raises")


_HTTP, _FSSPEC = _HttpFiles(), _FsspecFiles()
