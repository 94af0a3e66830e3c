"""Byte ranges of files wherever they are: a disk, an HTTP server, or anything fsspec knows.

A path without "://" is a local file. `http(s)://` is read with range requests over kept
connections; `s3://`, `gs://`, `hf://datasets/...` and the rest go through fsspec, whose plug-in
(s3fs, gcsfs, huggingface_hub) must be installed. What fails for a moment is tried again with
growing pauses; what stays away stops the run with one line, for a sample is not bad because the
network is.
"""

import collections
import dataclasses
import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.data.sources import http, patterns
from blip3o.data.sources.http import TransientError

T = TypeVar("T")

RETRY_DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses before each further attempt at a remote read."""
_MAX_OPEN_FILES = 256
"""Most local files held open at once; a process may often open no more than 1024."""
_FILE_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


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
    """Returns the files that a pattern names, sorted; a local file of that very name comes first.

    Args:
        pattern: "data/{0000..0099}.tar" counts; "*", "?" and "[0-9]" match, except over HTTP,
            where nothing can be listed.

    Raises:
        UsageError: if some of the counted local files are missing, for a match over HTTP, or a
            store that cannot be listed.
    """
    if not is_remote(pattern):
        return patterns.find(pattern)
    wanted = patterns.counted(pattern, is_local=False)
    return list(dict.fromkeys(path for one in wanted for path in _expand_remote(one)))


def _expand_remote(pattern: str) -> list[str]:
    place, _, query = pattern.partition("?")
    if pattern.startswith(("http://", "https://")):
        # A signed address has a question mark, too.
        if any(mark in place for mark in "*[") or ("?" in pattern and "=" not in query):
            raise UsageError(f"an HTTP server lists no files: write {pattern} with {{0000..0099}}")
        return [pattern]
    return _FSSPEC.glob(pattern) if any(mark in pattern for mark in "*?[") else [pattern]


def beside(path: str, suffix: str) -> str:
    """Returns the address of a file whose name goes on behind that of another.

    Args:
        path: path or address, which may end in a query ("?token=...").
        suffix: what comes behind its name.
    """
    if not path.startswith(("http://", "https://")):
        return path + suffix
    place, mark, query = path.partition("?")
    return place + suffix + mark + query


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
        """Returns size and time of the last change; OSError if there is no such ordinary file."""
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # reading it might wait or go on for ever
            kind = next((name for test, name in _FILE_KINDS if test(status.st_mode)), "no file")
            raise OSError(errno.EINVAL, f"it is {kind}, no ordinary file")
        return FileStamp(size=status.st_size, tag=str(status.st_mtime_ns))

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Returns the bytes of a range; OSError if there is no such file."""
        return os.pread(self._descriptor(path), size, offset)

    def _descriptor(self, path: str) -> int:
        found = self._open.get(path)
        if found is None:
            if len(self._open) >= _MAX_OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            # Opening a pipe that came in place of the file would wait.
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
            found = self._open[path] = os.open(path, flags)
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
        self._tags: dict[str, str] = {}  # of every file that was served, empty if it changed

    def __getstate__(self) -> dict[str, Any]:
        return {"_clients": {}, "_tags": {}}

    def stamp(self, path: str) -> FileStamp:
        # A request for one byte, not HEAD: it also shows whether ranges are served at all.
        client = self._client()
        piece = self._ask(path, lambda: http.fetch_piece(client, path, 0, 1), 1)
        if piece.total is None:
            raise UsageError(f"{path}: the server does not say how long it is")
        return FileStamp(size=piece.total, tag=piece.tag)

    def read(self, path: str, offset: int, size: int) -> bytes:
        if size <= 0:
            return b""
        client = self._client()
        return self._ask(path, lambda: http.fetch(client, path, offset, size), size).data or b""

    def _client(self) -> Any:  # noqa: ANN401  (httpx is lazy)
        client = self._clients.get(os.getpid())
        if client is None:
            self._clients.clear()
            client = self._clients[os.getpid()] = http.new_client()
        return client

    def _ask(self, path: str, function: Callable[[], http.Piece], size: int) -> http.Piece:
        def ask() -> http.Piece:
            try:
                return http.within_time(function, size)
            except http.NoRangesError as error:
                if path in self._tags:  # something between us and the server, for a moment
                    raise TransientError("a whole file for a range") from error
                raise

        piece = _persist(path, ask)
        known = self._tags.setdefault(path, piece.tag)
        if piece.tag and known and piece.tag != known:
            say(f"warning: {path} was replaced on its server; records that moved count as bad")
            self._tags[path] = ""
        return piece


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

        def whole() -> bytes:
            data = self._ask(path, lambda: system.cat_file(inner, offset, end))
            if len(data) < size:  # the end of the file, or of a connection
                there = self._ask(path, lambda: system.info(inner))["size"]
                if offset + len(data) < min(end, int(there)):
                    raise TransientError(f"{len(data)} of {size} bytes came")
            return data

        return _persist(path, whole)

    def glob(self, pattern: str) -> list[str]:
        """Returns the addresses a pattern matches, sorted; that of its very name comes first."""
        system, inner = self._find(pattern)
        if _persist(pattern, lambda: self._ask(pattern, lambda: system.exists(inner))):
            return [pattern]
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
            raise TransientError(str(error) or type(error).__name__) from error


def _persist(path: str, function: Callable[[], T]) -> T:
    """Returns what a function returns, tried again after pauses while it fails for a moment."""
    for delay_s in (*RETRY_DELAYS_S, None):
        try:
            return function()
        except TransientError as error:
            if delay_s is None:
                raise UsageError(
                    f"{path} cannot be reached, {len(RETRY_DELAYS_S) + 1} attempts: {error}; "
                    "the same command goes on when it can"
                ) from error
            say(f"warning: {path}: {error}; again in {delay_s:g} s")
            time.sleep(delay_s)
    raise AssertionError("the last attempt returns or raises")


_HTTP, _FSSPEC = _HttpFiles(), _FsspecFiles()
