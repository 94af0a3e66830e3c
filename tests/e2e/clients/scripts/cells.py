"""Runs what a client does, one thing after another, and prints what came of each as JSON."""

import io
import json
import sys
from base64 import b64decode
from collections.abc import Callable
from typing import Any

URL = sys.argv[1]
MODEL = "pocket"
PROMPT, CHANGE, QUESTION = "a red car", "make it blue", "what is in the image?"
HELLO, AND_NOW = "hello", "and now?"


def file_of(b64: str) -> io.BytesIO:
    """Returns an image as an open file, as clients take it."""
    file = io.BytesIO(b64decode(b64))
    file.name = "car.png"
    return file


def uri_of(b64: str) -> str:
    return f"data:image/png;base64,{b64}"


def run(**cells: Callable[[], Any]) -> None:
    """Prints the result of each cell; one that fails does not keep the others from running."""
    results: dict[str, Any] = {}
    for name, cell in cells.items():
        try:
            results[name] = {"value": cell()}
        except Exception as error:  # noqa: BLE001  (whatever a client raises)
            results[name] = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(results))  # noqa: T201
