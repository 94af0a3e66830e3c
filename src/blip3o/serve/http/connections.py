"""Limits of connections: their number, and timeouts for headers and for reading answers."""

import asyncio
import logging
import sys
import time

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from blip3o.serve.http.errors import ApiError

if sys.platform != "win32":
    import resource

BACKLOG = 128
"""Connections that the system queues until the server accepts them."""
_OTHER_FILES = 128
"""Open files reserved for the rest of the server."""
_LEAST_CONNECTIONS = 16
_WINDOW_S, _LINES = 60.0, 5


def raise_file_limit(wanted: int) -> int:
    """Raises the limit of open files as needed and permitted; returns the possible connections.

    Args:
        wanted: desired number of connections.
    """
    if sys.platform == "win32":  # no such limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = BACKLOG + _OTHER_FILES
    if soft < wanted + spare:
        more = wanted + spare if hard == resource.RLIM_INFINITY else min(wanted + spare, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
        except (OSError, ValueError):  # systems may have further limits
            pass
    return max(_LEAST_CONNECTIONS, min(wanted, soft - spare))


class Connections:
    """The open connections of a server.

    If there are too many, the connection that has had no request for the longest time is closed.

    Args:
        most: largest number of connections.
        header_timeout_s: longest time to receive the header of a request.
        read_timeout_s: longest time a client may take without reading any of its answer.
    """

    def __init__(self, most: int, header_timeout_s: float, read_timeout_s: float) -> None:
        self.most = most
        self.header_timeout_s = header_timeout_s
        self.read_timeout_s = read_timeout_s
        self._open: set[TimedProtocol] = set()
        self._waiting: dict[TimedProtocol, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, one: "TimedProtocol") -> bool:
        """Adds a connection; returns False if there is no room for it."""
        if len(self._open) >= self.most:
            oldest = next(iter(self._waiting), None)
            if oldest is None:
                return False
            self.remove(oldest)
            oldest.transport.abort()
        self._open.add(one)
        self._waiting[one] = None
        return True

    def remove(self, one: "TimedProtocol") -> None:
        """Removes a connection."""
        self._open.discard(one)
        self._waiting.pop(one, None)

    def note(self, one: "TimedProtocol", *, is_waiting: bool) -> None:
        """Records whether a connection has no request, and since when."""
        if not is_waiting:
            self._waiting.pop(one, None)
        elif one in self._open and one not in self._waiting:
            self._waiting[one] = None


class TimedProtocol(H11Protocol):
    """A connection that is closed if its header or the reading of its answer takes too long."""

    table: Connections

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Accepts a connection, or refuses it if there are too many."""
        super().connection_made(transport)
        self._header_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self._has_data = False
        if self.table.add(self):
            self._update_header_timer()
        else:
            self._refuse(503, "too many connections; try again later", "too_many_connections")

    def connection_lost(self, exc: Exception | None) -> None:
        """Removes the connection."""
        self.table.remove(self)
        for timer in (self._header_timer, self._read_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Receives the next bytes of a request."""
        self._has_data = True
        super().data_received(data)
        self._update_header_timer()

    def on_response_complete(self) -> None:
        """Waits for the next request of the connection."""
        self._has_data = False
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_reading()
        # uvicorn closes idle connections; the header timer starts with the next byte.
        self._update_header_timer(is_timed=False)

    def timeout_keep_alive_handler(self) -> None:
        """Closes an idle connection."""
        super().timeout_keep_alive_handler()
        self._watch_reading()

    def send_400_response(self, msg: str) -> None:
        """Answers bytes that are not HTTP."""
        super().send_400_response(msg)
        self._watch_reading()

    def pause_writing(self) -> None:
        """Starts the read timer when the client reads more slowly than the server writes."""
        super().pause_writing()
        self._watch_reading()

    def _watch_reading(self, left: int | None = None) -> None:
        """Closes the connection if the client stops reading the rest of its answer."""
        if self._read_timer is not None:
            self._read_timer.cancel()
        now = self.transport.get_write_buffer_size()
        if now and now == left:
            self.transport.abort()
        elif now:
            wait = self.table.read_timeout_s
            self._read_timer = self.loop.call_later(wait, self._watch_reading, now)

    def _update_header_timer(self, *, is_timed: bool = True) -> None:
        """Starts or stops the timer for a header."""
        is_waiting = self.conn.their_state is h11.IDLE
        self.table.note(self, is_waiting=is_waiting)
        if not is_waiting and self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
        elif is_waiting and is_timed and self._header_timer is None:
            wait = self.table.header_timeout_s
            self._header_timer = self.loop.call_later(wait, self._end_waiting)

    def _end_waiting(self) -> None:
        self._header_timer = None
        if self.transport.is_closing():
            return
        if self._has_data:
            seconds = f"{self.table.header_timeout_s:g} seconds"
            self._refuse(408, f"the header did not arrive within {seconds}", "header_timeout")
        else:
            self.transport.abort()

    def _refuse(self, status: int, message: str, code: str) -> None:
        answer = ApiError(status, message, code=code).response()
        lines = [f"HTTP/1.1 {status} {'Timeout' if status == 408 else 'Unavailable'}"]
        lines += [f"{name.decode()}: {value.decode()}" for name, value in answer.raw_headers]
        head = "\r\n".join([*lines, "connection: close", "", ""])
        self.transport.write(head.encode() + bytes(answer.body))
        self.transport.close()
        self._watch_reading()


def protocol_of(table: Connections) -> type[TimedProtocol]:
    """Returns a protocol class whose connections belong to a table."""
    return type("ConnectionProtocol", (TimedProtocol,), {"table": table})


class RateLimit(logging.Filter):
    """Passes lines with the same beginning a few times per minute, and counts the rest."""

    def __init__(self) -> None:
        super().__init__()
        self._windows: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log a line."""
        lines = record.getMessage().splitlines() or [""]
        key = lines[0][:80]
        now = time.monotonic()
        start, count = self._windows.get(key, (now, 0))
        if now - start > _WINDOW_S:
            if count > _LINES:
                more = f"{record.getMessage()} ({count - _LINES} more of these before)"
                record.msg, record.args = more, ()
            start, count = now, 0
        if len(self._windows) > 1000:
            self._windows.clear()
        self._windows[key] = (start, count + 1)
        return count < _LINES


def limit_log() -> None:
    """Limits the log lines about connections."""
    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        if not any(isinstance(one, RateLimit) for one in logger.filters):
            logger.addFilter(RateLimit())
