"""The items that answers of `/v1/responses` are made of."""

import secrets
from typing import Any

from blip3o.serve.http.shelf import Shelf

ItemShelf = Shelf[dict[str, Any]]
"""The latest items of answers, for clients that send an id in the place of an item."""


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
