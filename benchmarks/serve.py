"""Measures servers under mixed requests: batches of images against one image at a time.

Two servers run and are measured in turn, never at the same time. A request with status 429 is sent
again after the time in its response; every other failure is counted. Both servers must return the
same images and answers. The memory is that of the server.
"""

import base64
import contextlib
import http.client
import io
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from measure import Case, Options, main
from PIL import Image

REQUESTS, CLIENTS = 200, 16
WARM = 50
"""Number of requests of a run before memory is first measured."""


class Request(NamedTuple):
    """A request: path, body and content type."""

    path: str
    body: bytes
    kind: str


class Asked(NamedTuple):
    """Result of a request: seconds, number of 429 responses, status (None if lost), and body."""

    seconds: float
    put_off: int
    status: int | None
    body: bytes

    @property
    def content(self) -> object:
        """The images or the answer."""
        body = json.loads(self.body) if self.status == 200 else {}
        return body.get("data") or [one["message"]["content"] for one in body.get("choices", [])]


class Load(NamedTuple):
    """Results of all requests of a run, and the memory of the server in MB after each."""

    results: list[Asked]
    memory_mb: list[float]


class Server:
    """A server process.

    Args:
        words: options of `blip3o serve`.
    """

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "blip3o", "serve", "--port", "0", "--no-page", *words]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"serving .*:(\d+)$", line.strip()):
                self.port = int(found[1])
                return
        raise RuntimeError("the server did not start")

    def memory_mb(self) -> float:
        """Returns the resident memory of the process in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    def ask(self, request: Request) -> Asked:
        """Sends a request until its response has another status than 429."""
        start = time.perf_counter()
        put_off = 0
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
            try:
                headers = {"Content-Type": request.kind}
                connection.request("POST", request.path, request.body, headers)
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                print(f"no response to {request.path}: {error}", file=sys.stderr)
                return Asked(time.perf_counter() - start, put_off, None, b"")
            finally:
                connection.close()
            if answer.status != 429:
                if answer.status != 200:
                    print(f"status {answer.status} for {request.path}: {body}", file=sys.stderr)
                return Asked(time.perf_counter() - start, put_off, answer.status, body)
            put_off += 1
            time.sleep(float(answer.headers["Retry-After"]))

    def load(self, make: Callable[[int], Request], count: int, clients: int) -> Load:
        """Sends numbered requests from several clients and waits for all responses."""
        memory: list[float] = []

        def one(number: int) -> Asked:
            result = self.ask(make(number))
            memory.append(self.memory_mb())
            return result

        with ThreadPoolExecutor(clients) as pool:
            return Load(list(pool.map(one, range(count))), memory)


@contextlib.contextmanager
def servers(**options: tuple[str, ...]) -> Iterator[dict[str, Server]]:
    """Starts servers by name; ends them with the context.

    Raises:
        RuntimeError: if a server does not end with status 0.
    """
    started: dict[str, Server] = {}
    try:
        for name, words in options.items():
            started[name] = Server(*words)
        yield started
    finally:
        for server in started.values():
            server.process.terminate()
        codes = [server.process.wait() for server in started.values()]
    if any(codes):
        raise RuntimeError(f"the servers ended with status {codes}")


def generation(number: int) -> Request:
    """Returns a request for one image."""
    prompt = ("a red car", "three yellow stars", "a blue cat to the left of a tree")[number % 3]
    body = {"prompt": prompt, "seed": number, "guidance_scale": 2 + number % 5}
    return Request("/v1/images/generations", json.dumps(body).encode(), "application/json")


def mixed(number: int) -> Request:
    """Returns one of ten: seven generations, an edit, a reconstruction, a question."""
    file = io.BytesIO()
    Image.new("RGB", (96, 96), "red").save(file, "PNG")
    if number % 10 in (3, 7):
        fields = {"image": file.getvalue(), "seed": str(number).encode()}
        if number % 10 == 3:
            fields["prompt"] = b"make it blue"
        parts = [
            f'--b\r\nContent-Disposition: form-data; name="{name}"'.encode()
            + (b'; filename="a.png"' if name == "image" else b"")
            + b"\r\n\r\n"
            + value
            + b"\r\n"
            for name, value in fields.items()
        ]
        path = "/v1/images/edits" if number % 10 == 3 else "/v1/images/variations"
        return Request(path, b"".join(parts) + b"--b--\r\n", "multipart/form-data; boundary=b")
    if number % 10 == 9:
        uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        parts_of_turn = [
            {"type": "image_url", "image_url": {"url": uri}},
            {"type": "text", "text": "What is in the image?"},
        ]
        chat = {"messages": [{"role": "user", "content": parts_of_turn}]}
        return Request("/v1/chat/completions", json.dumps(chat).encode(), "application/json")
    return generation(number)


def figures(load: Load) -> Mapping[str, float]:
    """Returns latencies, counts of responses, and memory of a run."""
    seconds = sorted(result.seconds for result in load.results)
    found = {
        "median_latency_s": statistics.median(seconds),
        "p95_latency_s": seconds[round(0.95 * (len(seconds) - 1))],
        "answered": sum(result.status == 200 for result in load.results),
        "errors_but_429": sum(result.status not in (200, None) for result in load.results),
        "lost": sum(result.status is None for result in load.results),
        "put_off_by_429": sum(result.put_off for result in load.results),
        "memory_mb": load.memory_mb[-1],
    }
    if len(load.memory_mb) > WARM:
        found["memory_growth"] = load.memory_mb[-1] / load.memory_mb[WARM] - 1
    return found


def share_of_different(one: Load, other: Load) -> float:
    """Returns the share of the requests whose images or answers differ."""
    pairs = list(zip(one.results, other.results, strict=True))
    return sum(first.content != second.content for first, second in pairs) / len(pairs)


def mixture(options: Options) -> Iterator[Case]:
    """Mixed requests of several clients."""
    requests, clients = options.pick((REQUESTS, CLIENTS), (10, 4))
    with servers(one_by_one=("--max-batch", "1"), batches=()) as started:
        yield Case(
            unit="request",
            work=requests,
            variants={
                name: lambda server=server: server.load(mixed, requests, clients)
                for name, server in started.items()
            },
            difference=share_of_different,
            figures=figures,
            facts={"clients": clients},
            is_long=True,
            most_rounds=3,
        )


if __name__ == "__main__":
    main(__doc__, {"mixture": mixture})
