"""Reads byte ranges of files on a disk, on an HTTP server, or in any store that fsspec knows.

Whole files can be written to a disk and to a store of fsspec.

A path without "://" is a local file. `http(s)://` is read with range requests over persistent
connections. `s3://`, `gs://`, `hf://datasets/...` and others use fsspec, whose plug-in (s3fs,
gcsfs, huggingface_hub) must be installed. A transient error is retried with growing pauses. A
permanent one stops the run with one line, because a network error does not make a sample bad.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeVar

from blip3o.core.errors import UsageError
from blip3o.core.files import user_cache
from blip3o.core.log import say
from blip3o.data.sources import http, patterns
from blip3o.data.sources.http import TransientError
from blip3o.data.sources.local_files import FileStamp, LocalFiles

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

RETRY_DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses before the further attempts of a remote read, in seconds."""
REMOTE_READS = 16
"""Reads that a process sends at the same time, because each waits for the network."""


class NoSuchFileError(UsageError):
    """A store does not hold a file."""


class Files(Protocol):
    """A store of files, which may be read from several threads, and after a fork."""

    def stamp(self, path: str) -> FileStamp:
        """Returns size and version of a file."""
        ...

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Returns the bytes of a range; fewer if the file ends before."""
        ...


class Store(Files, Protocol):
    """A store that takes files."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Returns the size of each file in a folder by its name; nothing without a folder."""
        ...

    def writing(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """Yields a file that is stored as `path` when the block ends: whole, or not at all."""
        ...

    def remove(self, path: str) -> None:
        """Removes a file."""
        ...


def is_remote(path: str) -> bool:
    """Returns whether a path is an address rather than a local file."""
    return "://" in path


def files_of(path: str) -> Files:
    """Returns the store that a path belongs to."""
    if path.startswith(("http://", "https://")):
        return _HTTP
    return _FSSPEC if is_remote(path) else LocalFiles()


def store_of(path: str) -> Store:
    """Returns the store that a path belongs to, to write files as well.

    Raises:
        UsageError: if it is on an HTTP server.
    """
    if path.startswith(("http://", "https://")):
        raise UsageError(f"cannot write to the HTTP server of {path}; give a folder or s3://...")
    return _FSSPEC if is_remote(path) else LocalFiles()


def read_file(path: str) -> bytes:
    """Returns a whole file.

    Raises:
        OSError: if a local file cannot be read.
        UsageError: if a remote file cannot be read, after several attempts.
    """
    files = files_of(path)
    return files.read(path, 0, files.stamp(path).size)


def expand(pattern: str) -> list[str]:
    """Returns the files that match a pattern, sorted.

    A local file with the literal name of the pattern takes precedence.

    Args:
        pattern: may hold ranges ("data/{0000..0099}.tar") and the wildcards "*", "?" and "[0-9]".
            HTTP servers list no files, so wildcards do not work there.

    Raises:
        UsageError: if only some local files of a range exist, for wildcards over HTTP, or if the
            store cannot be listed.
    """
    if not is_remote(pattern):
        return patterns.find(pattern)
    wanted = patterns.counted(pattern, is_local=False)
    return list(dict.fromkeys(path for one in wanted for path in _expand_remote(one)))


def _expand_remote(pattern: str) -> list[str]:
    place, _, query = pattern.partition("?")
    if pattern.startswith(("http://", "https://")):
        # The question mark of a signed address is not a wildcard.
        if any(mark in place for mark in "*[") or ("?" in pattern and "=" not in query):
            raise UsageError(f"an HTTP server lists no files: write {pattern} with {{0000..0099}}")
        return [pattern]
    return _FSSPEC.glob(pattern) if any(mark in pattern for mark in "*?[") else [pattern]


def neighbor(path: str, suffix: str) -> str:
    """Returns the path or address with a suffix appended to the file name, before any query."""
    if not path.startswith(("http://", "https://")):
        return path + suffix
    place, mark, query = path.partition("?")
    return place + suffix + mark + query


def private_path(path: str, suffix: str) -> Path:
    """Returns a path in the user's cache for data that cannot be stored next to its file.

    The returned path ends with the suffix.
    """
    key = hashlib.sha256((path if is_remote(path) else os.path.abspath(path)).encode()).hexdigest()
    return user_cache("index") / f"{key[:24]}{suffix}"


class _HttpFiles:
    def __init__(self) -> None:
        # By process id, because forked processes must not share a connection.
        self._clients: dict[int, httpx.Client] = {}
        self._tags: dict[str, str] = {}  # by address; empty if the file has changed

    def __getstate__(self) -> dict[str, object]:
        return {"_clients": {}, "_tags": {}}

    def stamp(self, path: str) -> FileStamp:
        # Request one byte instead of HEAD: this also tests whether the server supports ranges.
        client = self._client()
        piece = self._request(path, lambda: http.fetch_piece(client, path, 0, 1), 1)
        if piece.total is None:
            raise UsageError(f"{path}: the server does not report its length")
        return FileStamp(size=piece.total, tag=piece.tag)

    def read(self, path: str, offset: int, size: int) -> bytes:
        if size <= 0:
            return b""
        client = self._client()
        return self._request(path, lambda: http.fetch(client, path, offset, size), size).data or b""

    def _client(self) -> "httpx.Client":
        client = self._clients.get(os.getpid())
        if client is None:
            self._clients.clear()
            client = self._clients[os.getpid()] = http.new_client()
        return client

    def _request(self, path: str, function: Callable[[], http.Piece], size: int) -> http.Piece:
        def attempt() -> http.Piece:
            try:
                return http.within_time(function, size)
            except http.NoRangesError as error:
                if path in self._tags:  # it supported ranges before: probably a proxy's error
                    raise TransientError("the whole file came instead of a range") from error
                raise

        piece = _retry(path, attempt)
        known = self._tags.setdefault(path, piece.tag)
        if piece.tag and known and piece.tag != known:
            say(f"warning: {path} was replaced on its server; moved records count as bad")
            self._tags[path] = ""
        return piece


class _FsspecFiles:
    def stamp(self, path: str) -> FileStamp:
        system, inner = self._find(path)
        info = _retry(path, lambda: self._call(path, lambda: system.info(inner)))
        names = ("ETag", "etag", "blob_id", "LastModified", "mtime", "created")
        tag = next((str(info[name]) for name in names if info.get(name)), "")
        return FileStamp(size=int(info["size"]), tag=tag)

    def read(self, path: str, offset: int, size: int) -> bytes:
        system, inner = self._find(path)
        end = offset + size

        def complete() -> bytes:
            data = self._call(path, lambda: system.cat_file(inner, offset, end))
            if len(data) < size:  # the end of the file, or a broken connection
                there = self._call(path, lambda: system.info(inner))["size"]
                if offset + len(data) < min(end, int(there)):
                    raise TransientError(f"only {len(data)} of {size} bytes arrived")
            return data

        return _retry(path, complete)

    def glob(self, pattern: str) -> list[str]:
        """Returns the addresses that match a pattern, sorted; a literal match takes precedence."""
        system, inner = self._find(pattern)
        if _retry(pattern, lambda: self._call(pattern, lambda: system.exists(inner))):
            return [pattern]
        found = _retry(pattern, lambda: self._call(pattern, lambda: system.glob(inner)))
        return sorted(system.unstrip_protocol(one) for one in found)

    def sizes(self, folder: str) -> dict[str, int]:
        system, inner = self._find(folder)
        system.invalidate_cache()  # else it would not see files of other machines
        try:
            found = _retry(folder, lambda: self._call(folder, lambda: system.ls(inner, True)))
        except NoSuchFileError:
            return {}
        return {one["name"].rpartition("/")[2]: int(one["size"] or 0) for one in found}

    @contextmanager
    def writing(self, path: str) -> Iterator[IO[bytes]]:
        system, inner = self._find(path)
        # An upload from a block that fails would store a part, so the file is complete before.
        with tempfile.NamedTemporaryFile() as file:
            yield file
            file.flush()
            _retry(path, lambda: self._call(path, lambda: system.put_file(file.name, inner)))

    def remove(self, path: str) -> None:
        system, inner = self._find(path)
        _retry(path, lambda: self._call(path, lambda: system.rm_file(inner)))

    @staticmethod
    def _find(path: str) -> tuple[Any, str]:
        try:
            from fsspec.core import url_to_fs

            return url_to_fs(path)
        except (ImportError, ValueError) as error:  # a missing plug-in or an unknown protocol
            raise UsageError(f"cannot read {path}: {error}") from error

    @staticmethod
    def _call(path: str, function: Callable[[], T]) -> T:
        try:
            return function()
        except FileNotFoundError as error:
            raise NoSuchFileError(f"no such file: {path}") from error
        except (PermissionError, NotImplementedError) as error:
            raise UsageError(f"cannot use {path}: {error}") from error
        except Exception as error:  # every plug-in has its own errors for a broken connection
            raise TransientError(str(error) or type(error).__name__) from error


def _retry(path: str, function: Callable[[], T]) -> T:
    """Returns the result of a function, which is called again after each transient error."""
    for delay_s in (*RETRY_DELAYS_S, None):
        try:
            return function()
        except TransientError as error:
            if delay_s is None:
                raise UsageError(
                    f"{path} cannot be reached, {len(RETRY_DELAYS_S) + 1} attempts: {error}; "
                    "run the same command later to resume"
                ) from error
            say(f"warning: {path}: {error}; next attempt in {delay_s:g} s")
            time.sleep(delay_s)
    raise AssertionError("the last attempt returns or raises")


_HTTP, _FSSPEC = _HttpFiles(), _FsspecFiles()
