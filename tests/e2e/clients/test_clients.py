"""Popular clients generate, ask, stream and edit with a real server."""

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[2] / "docs" / "serving.md"
CELLS = {
    "draw": "image",
    "ask": "hello",
    "stream": "hello",
    "edit": "image",
    "look": "text",
    "talk": "text",
    "sample": "text",
    "respond": "hello",
    "respond_streamed": "hello",
    "respond_drawn": "image",
}
CLIENTS = {
    "openai (Python)": "openai_python.py",
    "litellm": "litellm_python.py",
    "langchain-openai": "langchain_python.py",
    "llm": "llm_python.py",
    "openai (npm)": "openai_node.mjs",
    "ai, @ai-sdk/openai": "ai_sdk.mjs",
}
TEXT_ONLY = ("llm",)
"""Clients that cannot request an image."""
Results = Callable[[str], dict[str, dict[str, Any]]]


def cells() -> list[Any]:
    return [
        pytest.param(client, cell, id=f"{client}: {cell}")
        for client in CLIENTS
        for cell, kind in CELLS.items()
        if kind != "image" or client not in TEXT_ONLY
    ]


@pytest.mark.parametrize(("client", "cell"), cells())
def test_a_client_gets_the_requested_result(results: Results, client: str, cell: str) -> None:
    result = results(CLIENTS[client])[cell]
    assert "error" not in result, result["error"]
    value = result["value"]
    if CELLS[cell] == "image":
        image = Image.open(io.BytesIO(base64.b64decode(value)))
        assert (image.format, image.size) == ("PNG", (96, 96))
    else:
        assert value.strip()


def test_greedy_answers_are_the_same_for_all_clients(results: Results) -> None:
    """Streamed or not, as a chat or as a response."""
    heard = {
        result["value"].strip()
        for script in CLIENTS.values()
        if script.endswith(".py")
        for cell, result in results(script).items()
        if CELLS[cell] == "hello"
    }
    assert len(heard) == 1


def test_the_document_names_the_tested_versions() -> None:
    pins = dict(re.findall(r"(?m)^([a-z0-9-]+)==(\S+)$", (HERE / "requirements.txt").read_text()))
    modules = json.loads((HERE / "package.json").read_text())["dependencies"]
    document = DOCUMENT.read_text(encoding="utf-8")
    for name in ("openai", "litellm", "langchain-openai", "llm"):
        assert f"{name} {pins[name]}" in document
    for name, version in modules.items():
        assert f"{name} {version}" in document
