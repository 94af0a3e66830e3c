"""A server shared by all tests that do not stop or break it, and OpenAI's client."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")


@pytest.fixture(scope="session")
def server(launch: Callable[..., Any]) -> Iterator[Any]:
    """A server, with the page if Gradio is installed: the page must not affect programs."""
    running = launch("--max-steps", "50", "--body-timeout-s", "2", "--max-image-bytes", "200000")
    yield running
    assert running.stop() == 0


@pytest.fixture
def client(server: Any) -> "openai.OpenAI":
    return server.client()


@pytest.fixture
def start(start: Callable[..., Any]) -> Callable[..., Any]:
    """Starts servers for one test each: without the page and with small batches, to be up soon."""

    def run(*words: str, **options: str) -> Any:
        return start("--no-page", "--max-batch", "4", *words, **options)

    return run
