"""Servers with wrong, oversized, slow or endless answers: a retry, or one clear error."""

import re
import threading
from collections.abc import Callable, Iterator
from http import server
from typing import Any, cast

import pytest

from blip3o.core.errors import UsageError
from blip3o.data.sources import files as module
from blip3o.data.sources import http
from blip3o.data.sources.files import files_of


class HostileHandler(server.BaseHTTPRequestHandler):
    """Answers the first requests with `server.tricks`, and later ones with a valid 206."""

    protocol_version = "HTTP/1.1"
    data = bytes(range(256)) * 16

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        hub = cast("Any", self.server)
        hub.count += 1
        trick = hub.tricks.pop(0) if hub.tricks else None
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["range"])
        assert found is not None
        first, last = found.groups()
        first, last = int(first), min(int(last), len(self.data) - 1)
        body, byte_range, tag = self.data[first : last + 1], f"{first}-{last}", "1"
        if trick == "short":
            body = body[:100]
        elif trick == "honestly short":
            last = first + 99
            body, byte_range = body[:100], f"{first}-{last}"
        elif trick == "another range":
            byte_range = f"{first + 1}-{last + 1}"
        elif trick == "too long":
            body += b"x" * 100
        elif trick == "other version":
            body, byte_range, tag = body[:100], f"{first}-{first + 99}", str(hub.count)
        if trick in ("whole", "circle", "elsewhere", "gone"):
            status = {"whole": 200, "gone": 410}.get(trick, 302)
            self.send_response(status)
            self.send_header("location", {"circle": self.path}.get(trick, "ftp://h/a"))
            self.send_header("content-length", "0")
            self.end_headers()
            return
        self.send_response(206)
        if trick != "no range":
            totals: dict[str | None, str] = {"no total": "*", "mad": "9" * 5000}
            total = totals.get(trick, str(len(self.data)))
            self.send_header("content-range", f"bytes {byte_range}/{total}")
        self.send_header("etag", tag)
        if trick == "compressed":
            self.send_header("content-encoding", "gzip")
        if trick in ("endless", "drip", "drip head"):
            self.close_connection = True
            self._go_on_for_ever(trick)
            return
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _go_on_for_ever(self, trick: str) -> None:
        hub = cast("Any", self.server)
        try:
            if trick == "drip head":
                self.flush_headers()
                self.wfile.write(b"x-slow: ")
            else:
                self.end_headers()
            while not hub.stop.is_set():
                self.wfile.write(b"x" * 65536 if trick == "endless" else b"x")
                self.wfile.flush()
                if trick != "endless":
                    hub.stop.wait(0.02)
        except OSError:
            pass  # the client closed the connection


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    monkeypatch.setattr(module, "RETRY_DELAYS_S", (0.01, 0.01, 0.01))
    monkeypatch.setattr(http, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(http, "SLACK_S", 0.2)
    made: Any = server.ThreadingHTTPServer(("127.0.0.1", 0), HostileHandler)
    made.tricks, made.count, made.stop = [], 0, threading.Event()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def start(*tricks: str) -> str:
        made.tricks = list(tricks)
        return f"http://127.0.0.1:{made.server_port}/a.tar"

    yield start
    made.stop.set()
    made.shutdown()
    thread.join()
    made.server_close()


TRANSIENT = (
    *("short", "another range", "too long", "endless", "drip", "drip head", "no range", "mad"),
    *("other version",),
)


@pytest.mark.parametrize("trick", [*TRANSIENT, "honestly short"])
def test_a_wrong_answer_is_retried(hostile: Callable[..., str], trick: str) -> None:
    address = hostile(trick, trick)
    data = files_of(address).read(address, 10, 3000)
    assert data == HostileHandler.data[10:3010]


@pytest.mark.parametrize("trick", TRANSIENT)
def test_a_server_that_always_answers_wrong_stops_with_one_line(
    hostile: Callable[..., str], trick: str
) -> None:
    address = hostile(*[trick] * 400)
    with pytest.raises(UsageError, match=r"a\.tar cannot be reached, 4 attempts: ") as caught:
        files_of(address).read(address, 10, 300)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("trick", "reason"),
    [
        ("circle", "redirects in a circle"),
        ("elsewhere", "unsupported protocol"),
        ("gone", "HTTP 410"),
        ("whole", "ignores range requests"),
        ("compressed", "compresses its answers"),
    ],
)
def test_permanent_errors_are_not_retried(
    hostile: Callable[..., str], trick: str, reason: str
) -> None:
    address = hostile(*[trick] * 40) + f"?{trick}=1"
    with pytest.raises(UsageError, match=reason):
        files_of(address).read(address, 10, 3000)


def test_a_whole_file_for_a_range_is_transient_if_ranges_worked_before(
    hostile: Callable[..., str],
) -> None:
    address = hostile()
    files = files_of(address)
    assert files.read(address, 0, 10) == HostileHandler.data[:10]
    hostile("whole", "whole")
    assert files.read(address, 5, 10) == HostileHandler.data[5:15]


def test_the_end_of_a_file_ends_a_range(hostile: Callable[..., str]) -> None:
    address = hostile()
    files = files_of(address)
    size = len(HostileHandler.data)
    assert files.stamp(address).size == size
    assert files.read(address, size - 3, 10) == HostileHandler.data[-3:]
    hostile("no total")
    assert files.read(address, size - 4, 4) == HostileHandler.data[-4:]


def test_a_new_version_of_a_file_is_reported_once(
    hostile: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    address = hostile() + "?version"
    files = files_of(address)
    for _ in range(3):
        hostile("other version")
        files.read(address, 0, 100)
    assert capsys.readouterr().err.count("was replaced on its server") == 1
