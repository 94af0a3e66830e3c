"""Server processes with the bundled model."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import openai

START_S = 240


class Server:
    """A server process whose lines on stderr are collected.

    Args:
        words: options of `blip3o serve`.
        code: Python code to run instead of the command; it must start the command itself.
        environment: additional environment variables.
    """

    def __init__(self, *words: str, code: str = "", **environment: str) -> None:
        start = ["-c", code] if code else ["-m", "blip3o"]
        command = [sys.executable, *start, "serve", "--port", "0", *words]
        command += ["--device", "cpu", "--dtype", "fp32"]
        self.process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "NO_PROXY": "127.0.0.1", **environment},
        )
        self.lines: list[str] = []
        self._is_up = threading.Event()
        self.url = ""
        threading.Thread(target=self._read, daemon=True).start()
        if not self._is_up.wait(START_S) or not self.url:
            self.process.kill()
            raise RuntimeError("the server did not start: " + "".join(self.lines))

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"serving \S+ at (http://\S+)", line):
                self.url = found[1]
                self._is_up.set()
        self._is_up.set()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, key: str = "none", timeout: float = 120) -> "openai.OpenAI":
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=timeout)

    def stop(self, timeout: float = 60) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@pytest.fixture(scope="session")
def launch() -> Iterator[Callable[..., Server]]:
    """Starts servers that run until the end of the session."""
    yield from _starting()


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Starts servers that run until the end of the test."""
    yield from _starting()


def _starting() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def run(*words: str, **options: str) -> Server:
        servers.append(Server(*words, **options))
        return servers[-1]

    yield run
    for server in servers:
        server.process.kill()
        server.process.wait()
