"""One attempt at a byte range of an HTTP server: checked, and bounded in size and in time."""

import dataclasses
import re
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from blip3o.core.errors import UsageError

T = TypeVar("T")

TIMEOUT_S = 30.0
"""Longest wait for a connection and for the next bytes."""
SLACK_S = 1.0
"""How much longer a request may take until it is given up from outside."""
SLOWEST_BYTES_PER_S = 32_768
"""A server that sends less in the long run is taken for one that does not answer."""
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_BUSY = (408, 425, 429)


class TransientError(Exception):
    """Worth another attempt."""


class NoRangesError(UsageError):
    """The server sends whole files only."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The answer of a server.

    Args:
        data: bytes from the place that was asked for; fewer than asked for where the server says
            so; None if the file ends before.
        total: length of the file, None if the server does not say.
        tag: what tells this version of the file from another, empty if the server gives nothing.
    """

    data: bytes | None
    total: int | None
    tag: str


def new_client() -> Any:  # noqa: ANN401  (httpx is lazy)
    """Returns a client that keeps connections and follows redirects."""
    import httpx

    return httpx.Client(timeout=TIMEOUT_S, follow_redirects=True)


def fetch(client: Any, path: str, offset: int, size: int) -> Piece:  # noqa: ANN401
    """Returns all bytes of a range, fewer where the file ends before.

    A server may send less at once than it was asked for; then it is asked for the rest.

    Args:
        client: of `new_client`.
        path: address.
        offset: first byte.
        size: bytes, at least 1.

    Raises:
        TransientError: if another attempt may help.
        UsageError: if none will.
    """
    first = fetch_piece(client, path, offset, size)
    data, piece = first.data or b"", first
    while piece.data and len(data) < size and offset + len(data) != first.total:
        piece = fetch_piece(client, path, offset + len(data), size - len(data))
        if (piece.total, piece.tag) != (first.total, first.tag):
            raise TransientError("it was replaced while it was read")
        data += piece.data or b""
    return dataclasses.replace(first, data=data)


def fetch_piece(client: Any, path: str, offset: int, size: int) -> Piece:  # noqa: ANN401
    """Returns the answer to one request for a range.

    Args:
        client: of `new_client`.
        path: address.
        offset: first byte.
        size: bytes, at least 1.

    Raises:
        TransientError: if another attempt may help.
        UsageError: if none will.
    """
    import httpx

    wanted = {"range": f"bytes={offset}-{offset + size - 1}", "accept-encoding": "identity"}
    ends = time.monotonic() + _longest_s(size)
    try:
        with client.stream("GET", path, headers=wanted) as response:
            return _read(response, path, offset, size, ends)
    except httpx.TooManyRedirects as error:
        raise UsageError(f"cannot read {path}: the server redirects in a circle") from error
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    except httpx.HTTPError as error:
        raise TransientError(str(error) or type(error).__name__) from error


def within_time(function: Callable[[], T], size: int) -> T:
    """Returns what a function returns that reads from a server, if that comes in time.

    While a server sends a header byte by byte, the client cannot look at the clock. So a second
    thread does the reading, and this one waits only so long.

    Args:
        function: what reads; where it takes too long it is left behind in a thread of its own.
        size: bytes it reads.

    Raises:
        TransientError: if it takes too long.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001  (it is raised where the result is awaited)
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_longest_s(size) + SLACK_S)
    if errors:
        raise errors[0]
    if not results:
        raise TransientError(f"no whole answer in {_longest_s(size):.0f} s")
    return results[0]


def _longest_s(size: int) -> float:
    return TIMEOUT_S + size / SLOWEST_BYTES_PER_S


def _read(response: Any, path: str, offset: int, size: int, ends: float) -> Piece:  # noqa: ANN401
    status, headers = response.status_code, response.headers
    if status in _BUSY or status >= 500:
        raise TransientError(f"HTTP {status}")
    tag = headers.get("etag") or headers.get("last-modified") or ""
    said = headers.get("content-range", "")
    if status == 416:
        total = said.rpartition("/")[2]
        return Piece(data=None, total=int(total) if _is_number(total) else None, tag=tag)
    if status == 200:  # the whole file: not to be read
        raise NoRangesError(f"{path}: the server ignores range requests")
    if status != 206:
        raise UsageError(f"cannot read {path}: HTTP {status}")
    if headers.get("content-encoding", "identity") != "identity":
        raise UsageError(f"{path}: the server compresses it on the way")
    found = _RANGE.fullmatch(said.strip())
    if not found or any(not _is_number(one) for one in found.groups() if one != "*"):
        raise TransientError(f"an answer without a sound Content-Range ({said!r:.60})")
    first, last = int(found[1]), int(found[2])
    total = None if found[3] == "*" else int(found[3])
    if total is not None:
        last = min(last, total - 1)  # some servers repeat a range that goes beyond the end
    if first != offset or not first <= last < offset + size:
        raise TransientError(
            f"bytes {offset}-{offset + size - 1} were asked for, {said!r:.60} came"
        )
    data = _body(response, last - first + 1, ends)
    return Piece(data=data, total=total, tag=tag)


def _body(response: Any, length: int, ends: float) -> bytes:  # noqa: ANN401
    """Returns a body that must be of one length."""
    data = bytearray()
    for chunk in response.iter_raw():
        data += chunk
        if len(data) > length:
            raise TransientError(f"more than the {length} bytes that were to come")
        if time.monotonic() > ends:
            raise TransientError(f"too slow: {len(data)} of {length} bytes came in time")
    if len(data) < length:
        raise TransientError(f"{len(data)} of {length} bytes came")
    return bytes(data)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20
