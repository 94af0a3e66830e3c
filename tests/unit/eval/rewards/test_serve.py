"""The server as its own process: signals and its end."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")

from blip3o.eval.rewards.client import RewardClient

CODE = """
import sys
from blip3o.core.errors import UsageError
from blip3o.eval.rewards import REWARDS
from blip3o.eval.rewards.config import RewardServerConfig
from blip3o.eval.rewards.server import serve_rewards

if __name__ == "__main__":
    REWARDS._table["fake"] = "reward_fakes:FakeRewards"
    try:
        serve_rewards("fake", sys.argv[2:], RewardServerConfig(port=int(sys.argv[1])))
    except UsageError as error:
        sys.exit(f"refused: {error}")
"""


class Process:
    def __init__(self, folder: Path, *overrides: str, port: int = 0) -> None:
        (folder / "serve.py").write_text(CODE)
        paths = [str(Path(__file__).parent), *sys.path]
        self.process = subprocess.Popen(
            [sys.executable, "serve.py", str(port), *overrides],
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "NO_PROXY": "127.0.0.1"},
        )
        self.lines: list[str] = []
        self.url = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"at (http://\S+)", line):
                self.url = found[1]

    def wait(self, seconds: float = 60) -> int:
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code

    def until_ready(self) -> dict[str, Any]:
        end = time.monotonic() + 90
        while time.monotonic() < end and self.process.poll() is None:
            if self.url and (health := httpx.get(f"{self.url}/health")).status_code == 200:
                return health.json()
            time.sleep(0.05)
        raise AssertionError("".join(self.lines))


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    started: list[Process] = []

    def run(*overrides: str, **options: Any) -> Process:
        started.append(Process(tmp_path, *overrides, **options))
        return started[-1]

    yield run
    for one in started:
        one.process.kill()
        one.process.wait()


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def ends(pid: int, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not is_alive(pid)


def test_sigterm_finishes_accepted_requests_even_if_it_reaches_the_scorer_too(begin: Any) -> None:
    server = begin()
    pid = server.until_ready()["scorer_pid"]
    found: list[Any] = []

    def ask() -> None:
        from PIL import Image

        with RewardClient(server.url) as client:
            image = Image.new("RGB", (4, 4), (255, 0, 0))
            found.extend(client.score([image] * 4, [{"does": "sleep"}] * 4))

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.8)
    assert not found
    os.kill(pid, signal.SIGTERM)
    server.process.send_signal(signal.SIGTERM)
    asking.join(30)
    assert [one.score for one in found] == [1.0] * 4
    assert server.wait() == 0
    assert ends(pid)
    assert "died" not in "".join(server.lines)


@pytest.mark.slow
def test_the_scorer_ends_with_a_killed_server(begin: Any) -> None:
    server = begin()
    pid = server.until_ready()["scorer_pid"]
    server.process.kill()
    assert ends(pid)


@pytest.mark.slow
def test_sigterm_ends_a_server_whose_scorer_still_loads(begin: Any) -> None:
    server = begin()
    end = time.monotonic() + 60
    while not server.url and time.monotonic() < end:
        time.sleep(0.02)
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 0


@pytest.mark.slow
def test_a_scorer_that_cannot_be_loaded_ends_the_server_with_the_reason(begin: Any) -> None:
    server = begin("load=refuse")
    assert server.wait() == 1
    assert "refused: the scorer cannot be used: there are no weights" in server.lines[-1]


def test_a_port_in_use_ends_the_server(begin: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = begin(port=taken.getsockname()[1])
        assert server.wait() == 1
    assert "refused: cannot listen on" in server.lines[-1]
