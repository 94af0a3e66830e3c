"""Requests a byte range from an HTTP server once, with checks and limits of size and time."""

import dataclasses
import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from blip3o.core.errors import UsageError

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

TIMEOUT_S = 30.0
"""Maximum wait for a connection and for the next bytes, in seconds."""
SLACK_S = 1.0
"""Extra time before a request is abandoned from another thread, in seconds."""
SLOWEST_BYTES_PER_S = 32_768
"""A server that is slower on average counts as not answering."""
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_BUSY = (408, 425, 429)


class TransientError(Exception):
    """An error after which another attempt may succeed."""


class NoRangesError(UsageError):
    """The server sends only whole files."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The answer of a server.

    Args:
        data: the requested bytes, or fewer if the server announces fewer; None if the range begins
            after the end of the file.
        total: length of the file; None if the server does not report it.
        tag: identifies the version of the file; empty if the server gives no tag.
    """

    data: bytes | None
    total: int | None
    tag: str


def new_client() -> "httpx.Client":
    """Returns a client with persistent connections that follows redirects."""
    import httpx

    return httpx.Client(timeout=TIMEOUT_S, follow_redirects=True)


def fetch(client: "httpx.Client", path: str, offset: int, size: int) -> Piece:
    """Returns all bytes of a range; fewer if the file ends before.

    If the server sends less than requested, the rest is requested again.

    Args:
        client: a client from `new_client`.
        path: address of the file.
        offset: first byte.
        size: number of bytes, at least 1.

    Raises:
        TransientError: if another attempt may succeed.
        UsageError: if no attempt can succeed.
    """
    first = fetch_piece(client, path, offset, size)
    data, piece = first.data or b"", first
    while piece.data and len(data) < size and offset + len(data) != first.total:
        piece = fetch_piece(client, path, offset + len(data), size - len(data))
        if (piece.total, piece.tag) != (first.total, first.tag):
            raise TransientError("the file was replaced while it was read")
        data += piece.data or b""
    return dataclasses.replace(first, data=data)


def fetch_piece(client: "httpx.Client", path: str, offset: int, size: int) -> Piece:
    """Returns the answer to one request for a range; arguments and errors as in `fetch`."""
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
    """Returns the result of a function that reads `size` bytes from a server.

    The client cannot check the time while a server sends a header byte by byte. So the function
    runs in a second thread, which is abandoned at the time limit.

    Raises:
        TransientError: if it takes too long.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001  (the waiting thread raises it)
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_longest_s(size) + SLACK_S)
    if errors:
        raise errors[0]
    if not results:
        raise TransientError(f"no complete answer in {_longest_s(size):.0f} s")
    return results[0]


def _longest_s(size: int) -> float:
    return TIMEOUT_S + size / SLOWEST_BYTES_PER_S


def _read(response: "httpx.Response", path: str, offset: int, size: int, ends: float) -> Piece:
    status, headers = response.status_code, response.headers
    if status in _BUSY or status >= 500:
        raise TransientError(f"HTTP {status}")
    tag = headers.get("etag") or headers.get("last-modified") or ""
    content_range = headers.get("content-range", "")
    if status == 416:
        total = content_range.rpartition("/")[2]
        return Piece(data=None, total=int(total) if _is_number(total) else None, tag=tag)
    if status == 200:  # the whole file follows; do not read it
        raise NoRangesError(f"{path}: the server ignores range requests")
    if status != 206:
        raise UsageError(f"cannot read {path}: HTTP {status}")
    if headers.get("content-encoding", "identity") != "identity":
        raise UsageError(f"{path}: the server compresses its answers; turn that off")
    found = _RANGE.fullmatch(content_range.strip())
    if not found or any(not _is_number(one) for one in found.groups() if one != "*"):
        raise TransientError(f"an answer without a valid Content-Range ({content_range!r:.60})")
    first, last = int(found[1]), int(found[2])
    total = None if found[3] == "*" else int(found[3])
    if total is not None:
        last = min(last, total - 1)  # some servers repeat a range that exceeds the file
    if first != offset or not first <= last < offset + size:
        raise TransientError(
            f"bytes {offset}-{offset + size - 1} were requested, {content_range!r:.60} came"
        )
    data = _body(response, last - first + 1, ends)
    return Piece(data=data, total=total, tag=tag)


def _body(response: "httpx.Response", length: int, ends: float) -> bytes:
    """Returns a body, which must have the given length."""
    data = bytearray()
    for chunk in response.iter_raw():
        data += chunk
        if len(data) > length:
            raise TransientError(f"more than the {length} announced bytes arrived")
        if time.monotonic() > ends:
            raise TransientError(f"too slow: {len(data)} of {length} bytes arrived in time")
    if len(data) < length:
        raise TransientError(f"only {len(data)} of {length} bytes arrived")
    return bytes(data)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20
