"""Connections of a real server with a one-line application."""

import http.client
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

pytest.importorskip("fastapi")

import uvicorn

from blip3o.serve.http.connections import (
    Connections,
    RateLimit,
    protocol_of,
    raise_file_limit,
)

BIG = b"x" * 30_000_000  # more than the system buffers for a client that does not read


async def app(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    body = BIG if scope["path"] == "/big" else b"ok"
    head = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


class Served:
    """A server that runs in a thread."""

    def __init__(self, **limits: Any) -> None:
        settings: Any = {"most": 20, "header_timeout_s": 0.5, "read_timeout_s": 0.5}
        self.table = Connections(**{**settings, **limits})
        config = uvicorn.Config(
            app,
            http=protocol_of(self.table),
            ws="none",
            lifespan="off",
            log_level="error",
            timeout_keep_alive=1,
        )
        self.server = uvicorn.Server(config)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), daemon=True)
        self.thread.start()
        end = time.monotonic() + 10
        while not self.server.started and time.monotonic() < end:
            time.sleep(0.01)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def get(self, path: str = "/") -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    servers: list[Served] = []

    def run(**limits: Any) -> Served:
        servers.append(Served(**limits))
        return servers[-1]

    yield run
    for one in servers:
        one.stop()


def rest(connection: socket.socket) -> bytes:
    """Returns all bytes until the other side closes."""
    try:
        return b"".join(iter(lambda: connection.recv(65536), b""))
    except ConnectionError:
        return b""


def test_a_header_must_arrive_in_time(serve: Callable[..., Served]) -> None:
    here = serve()
    start = time.monotonic()
    with here.connect() as silent, here.connect() as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-A")
        answer = rest(slow)
        assert rest(silent) == b""
    assert time.monotonic() - start < 5
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"header did not arrive within 0.5 seconds" in answer
    assert len(here.table) == 0


def test_a_slowly_sent_header_gets_no_extra_time(serve: Callable[..., Served]) -> None:
    here = serve()
    start = time.monotonic()
    with here.connect() as dripping:
        dripping.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        dripping.settimeout(0.05)
        answer = b""
        while not answer and time.monotonic() - start < 8:
            dripping.sendall(b"A: b\r\n")
            with suppress(TimeoutError):
                answer = dripping.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - start < 5


def test_the_second_header_of_a_connection_must_arrive_in_time(
    serve: Callable[..., Served],
) -> None:
    here = serve()
    with here.connect() as kept:
        kept.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in kept.recv(65536)
        kept.sendall(b"GET / HTTP/1.1\r\n")
        assert b"HTTP/1.1 408" in rest(kept)


def test_keep_alive_connections_answer_repeatedly(serve: Callable[..., Served]) -> None:
    here = serve(header_timeout_s=0.3)
    connection = http.client.HTTPConnection("127.0.0.1", here.port, timeout=10)
    for _ in range(4):
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"ok"
        time.sleep(0.2)  # in total longer than the header timeout
    connection.close()


def test_stalled_connections_make_room_for_new_ones(serve: Callable[..., Served]) -> None:
    here = serve(most=10, header_timeout_s=60)
    with ExitStack() as stack:
        held = [stack.enter_context(here.connect()) for _ in range(50)]
        for one in held:
            one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-")
        start = time.monotonic()
        assert [here.get() for _ in range(20)] == [200] * 20
        assert time.monotonic() - start < 5
        assert len(here.table) <= 10


def test_active_connections_are_not_closed_for_new_ones(serve: Callable[..., Served]) -> None:
    here = serve(most=3, read_timeout_s=30)
    with ExitStack() as stack:
        working = [stack.enter_context(here.connect()) for _ in range(3)]
        for one in working:
            one.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        time.sleep(0.3)
        with here.connect() as late:
            late.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert rest(late).startswith((b"HTTP/1.1 503", b""))
        assert [len(rest(one)) > len(BIG) for one in working] == [True] * 3


def test_a_client_that_does_not_read_is_disconnected(serve: Callable[..., Served]) -> None:
    here = serve()
    with here.connect() as deaf:
        deaf.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        end = time.monotonic() + 8
        time.sleep(0.3)
        assert len(here.table) == 1
        while len(here.table) and time.monotonic() < end:
            time.sleep(0.05)
        assert len(here.table) == 0
    assert here.get() == 200


def test_a_client_that_reads_slowly_gets_the_whole_answer(serve: Callable[..., Served]) -> None:
    here = serve()
    with here.connect() as slow:
        slow.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        got = 0
        start = time.monotonic()
        while piece := slow.recv(1_500_000):
            got += len(piece)
            if time.monotonic() - start < 2:  # longer than the read timeout
                time.sleep(0.1)
    assert got > len(BIG)


def test_the_number_of_connections_stays_below_the_number_of_files() -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = raise_file_limit(500)
    try:
        assert most <= 500
        assert most + 250 < max(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 300)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_log_line_is_written_only_a_few_times_per_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("blip3o.serve.http.connections.time.monotonic", lambda: now[0])
    limit = RateLimit()

    def passed(text: str) -> str | None:
        record = logging.LogRecord("asyncio", logging.ERROR, "", 0, text, (), None)
        return record.getMessage() if limit.filter(record) else None

    noise = "socket.accept() out of system resource\nsocket: "
    seen = [passed(f"{noise}{number}") for number in range(1000)]
    assert sum(one is not None for one in seen) == 5
    assert passed("another line") is not None
    now[0] = 61
    again = passed(noise)
    assert again is not None
    assert "995 more of these before" in again
