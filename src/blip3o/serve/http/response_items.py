"""The items that answers of `/v1/responses` are made of, and a shelf of the latest ones."""

import json
import secrets
import threading
from collections import OrderedDict
from typing import Any

_MOST_BYTES = 64_000_000


def new_id(prefix: str) -> str:
    """Returns an id that cannot be guessed."""
    return f"{prefix}_{secrets.token_hex(16)}"


def message_item(name: str, status: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the item of an answer in text.

    Args:
        name: its id.
        status: "in_progress", "completed" or "incomplete".
        parts: see `text_part`.
    """
    kind = {"id": name, "type": "message", "role": "assistant"}
    return {**kind, "status": status, "content": parts}


def text_part(text: str) -> dict[str, Any]:
    """Returns the part of an answer that holds its text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def image_item(name: str, status: str, result: str | None, **facts: str) -> dict[str, Any]:
    """Returns the item of an image.

    Args:
        name: its id.
        status: "in_progress", "generating" or "completed".
        result: base64 of a PNG file, when it is there.
        facts: what is known of it.
    """
    kind = {"id": name, "type": "image_generation_call"}
    return {**kind, "status": status, "result": result, "output_format": "png", **facts}


class ItemShelf:
    """The latest items of answers, for clients that send an id in the place of an item.

    The ids cannot be guessed. Nothing is written to a disk.

    Args:
        max_bytes: the oldest items make room for new ones beyond this.
    """

    def __init__(self, max_bytes: int = _MOST_BYTES) -> None:
        self._max_bytes = max_bytes
        self._items: OrderedDict[str, tuple[dict[str, Any], int]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def put(self, item: dict[str, Any]) -> None:
        """Keeps an item."""
        size = len(json.dumps(item))
        with self._lock:
            self._items[item["id"]] = (item, size)
            self._size += size
            while self._size > self._max_bytes and len(self._items) > 1:
                self._size -= self._items.popitem(last=False)[1][1]

    def get(self, name: str) -> dict[str, Any] | None:
        """Returns the item of an id, or None if it is not there any more."""
        with self._lock:
            return self._items.get(name, (None, 0))[0]
