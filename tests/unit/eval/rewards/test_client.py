"""The client, on a server that answers as a list says."""

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.eval.rewards.client import RewardClient

Answer = tuple[int, dict[str, str], str]
HANG_UP: Answer = (0, {}, "")
BUSY: Answer = (429, {"Retry-After": "1"}, '{"error": {"message": "full"}}')
GONE: Answer = (503, {}, "no json")


class Scripted:
    """A server that gives the listed answers, then scores each image by its first pixel."""

    def __init__(self, answers: list[Answer]) -> None:
        self.answers = answers
        self.bodies: list[bytes] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.bodies.append(body)
                status, headers, text = outer.answers.pop(0) if outer.answers else right(body)
                if not status:
                    self.connection.close()
                    return
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def right(body: bytes) -> Answer:
    pieces = body.split(b"\x89PNG")[1:]
    files = [Image.open(io.BytesIO(b"\x89PNG" + piece)) for piece in pieces]
    rewards = [{"score": float(np.asarray(file)[0, 0, 0])} for file in files]
    full = [{**one, "outcome": "judged", "data": {}} for one in rewards]
    return 200, {}, json.dumps({"judge": "j", "rewards": full})


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Scripted]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers: list[Scripted] = []

    def run(*answers: Answer) -> Scripted:
        servers.append(Scripted(list(answers)))
        return servers[-1]

    yield run
    for server in servers:
        server.stop()


def images(*reds: int) -> list[Image.Image]:
    return [Image.new("RGB", (4, 4), (red, 0, 0)) for red in reds]


def test_rewards_keep_the_order_over_several_requests(serve: Callable[..., Scripted]) -> None:
    server = serve()
    with RewardClient(server.url, images_per_request=2) as client:
        found = client.score(images(5, 4, 3, 2, 1), [{"n": n} for n in range(5)])
        assert [one.score for one in found] == [5, 4, 3, 2, 1]
        assert client.score([], []) == []
    assert len(server.bodies) == 3
    assert b'[{"n": 2}, {"n": 3}]' in server.bodies[1]


@pytest.mark.parametrize("trouble", [HANG_UP, GONE, (502, {}, ""), (504, {}, "")])
def test_faults_of_server_and_connection_are_sent_again(
    serve: Callable[..., Scripted], trouble: Answer
) -> None:
    server = serve(trouble, trouble)
    with RewardClient(server.url) as client:
        assert client.score(images(7), [{}])[0].score == 7
    assert len(server.bodies) == 3
    assert len({len(body) for body in server.bodies}) == 1


def test_the_client_waits_as_long_as_the_server_says(serve: Callable[..., Scripted]) -> None:
    server = serve(BUSY)
    start = time.monotonic()
    with RewardClient(server.url) as client:
        assert client.score(images(7), [{}])[0].score == 7
    assert time.monotonic() - start >= 1


def test_the_patience_ends(serve: Callable[..., Scripted]) -> None:
    server = serve(*[GONE] * 9)
    with (
        RewardClient(server.url, patience_s=0.6) as client,
        pytest.raises(UsageError, match=r"0\.6 seconds \(status 503\)"),
    ):
        client.score(images(7), [{}])
    assert 1 < len(server.bodies) < 9


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((422, {}, '{"error": {"message": "items.0: wrong"}}'), "422, items.0: wrong"),
        ((413, {}, "x"), "status 413"),
        ((200, {}, "<html>"), "as a reward server"),
        ((200, {}, '{"rewards": []}'), "as a reward server"),
        (
            (200, {}, '{"rewards": [{"score": 1, "outcome": "odd", "data": {}}]}'),
            "as a reward server",
        ),
        ((200, {}, '{"other": 1}'), "as a reward server"),
        ((200, {}, '{"rewards": [{"score": 1, "color": 2}]}'), "as a reward server"),
    ],
)
def test_refusals_and_other_servers_are_errors_at_once(
    serve: Callable[..., Scripted], answer: Answer, words: str
) -> None:
    server = serve(answer)
    with RewardClient(server.url) as client, pytest.raises(UsageError, match=words):
        client.score(images(7), [{}])
    assert len(server.bodies) == 1


def test_a_missing_server_and_a_wrong_address_are_errors() -> None:
    with (
        RewardClient("http://127.0.0.1:9", patience_s=0.1) as client,
        pytest.raises(UsageError, match=r"127\.0\.0\.1:9"),
    ):
        client.score(images(7), [{}])
    with pytest.raises(UsageError, match="http://HOST:PORT"):
        RewardClient("localhost:8100")
    with RewardClient("http://127.0.0.1:9") as client, pytest.raises(ValueError, match="1 images"):
        client.score(images(7), [])
    with RewardClient("http://127.0.0.1:9") as client, pytest.raises(UsageError, match="no reward"):
        client.health()


def test_threads_may_share_a_client(serve: Callable[..., Scripted]) -> None:
    server = serve(HANG_UP, GONE)

    def ask(red: int) -> Any:
        return client.score(images(red, 255 - red), [{}, {}])

    with RewardClient(server.url) as client, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(40)))
    assert [[one.score for one in some] for some in found] == [[n, 255 - n] for n in range(40)]
