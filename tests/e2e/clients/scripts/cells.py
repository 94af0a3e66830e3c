"""Runs the cells of a client one after another, and prints their results as JSON."""

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
    """Returns an image as an open file."""
    file = io.BytesIO(b64decode(b64))
    file.name = "car.png"
    return file


def uri_of(b64: str) -> str:
    return f"data:image/png;base64,{b64}"


def run(**cells: Callable[[], Any]) -> None:
    """Prints the result of each cell; the others run even if one fails."""
    results: dict[str, Any] = {}
    for name, cell in cells.items():
        try:
            results[name] = {"value": cell()}
        except Exception as error:  # noqa: BLE001  (clients may raise any error)
            results[name] = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(results))  # noqa: T201
