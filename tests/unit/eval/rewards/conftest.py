"""Reward servers in a thread of the test; their scorers are real processes."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
import uvicorn

from blip3o.eval.rewards import REWARDS
from blip3o.eval.rewards.app import RewardService, create_app
from blip3o.eval.rewards.client import RewardClient
from blip3o.eval.rewards.config import RewardServerConfig


class Running:
    """A server in a thread."""

    def __init__(self, benchmark: str, overrides: tuple[str, ...], **limits: Any) -> None:
        app = create_app(benchmark, overrides, RewardServerConfig(**limits))
        self.service: RewardService = app.state.service
        config = uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=20)
        self.server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self._thread.start()
        until(lambda: self.server.started)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def client(self, patience_s: float = 120.0) -> RewardClient:
        return RewardClient(self.url, patience_s=patience_s)

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()


def until(holds: Callable[[], object], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def fake() -> Iterator[str]:
    """The name of a benchmark whose scorer does as the metadata say."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.syspath_prepend(Path(__file__).parent)
        patch.setitem(REWARDS._table, "fake", "reward_fakes:FakeRewards")
        yield "fake"


@pytest.fixture(scope="module")
def shared(fake: str) -> Iterator[Running]:
    """A server that its tests leave ready."""
    server = Running(fake, (), max_image_pixels=100, max_queue=100, max_images=50)
    until(lambda: server.service.is_ready)
    yield server
    server.stop()


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Running]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers: list[Running] = []

    def run(benchmark: str, *overrides: str, **limits: Any) -> Running:
        servers.append(Running(benchmark, overrides, **limits))
        return servers[-1]

    yield run
    for server in servers:
        server.stop()
