"""Settings of a server of these tests, and requests to it."""

from collections.abc import Callable
from typing import Any

import pytest

from blip3o.remote.chat import ChatRequest
from blip3o.remote.http import ServerSettings

Server = Any  # the class in tests/unit/conftest.py


@pytest.fixture
def settings(server: Server) -> ServerSettings:
    """Settings of the server with short pauses."""
    return ServerSettings(
        model="judge", url=server.url, key_variable="", pause_s=0.01, retries=2, timeout_s=5.0
    )


@pytest.fixture
def questions() -> Callable[[int], list[ChatRequest]]:
    """Returns a function that makes requests "question 0", "question 1", ..."""
    return lambda count: [ChatRequest(parts=(f"question {k}",)) for k in range(count)]
