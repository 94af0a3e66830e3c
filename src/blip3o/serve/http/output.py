"""Output of all endpoints: event streams, PNG images, and results that clients fetch later."""

import asyncio
import base64
import io
import json
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import Generic, TypeVar

from PIL import Image
from starlette.responses import Response, StreamingResponse

from blip3o.serve.http.errors import ApiError
from blip3o.serve.http.fields import JsonObject

T = TypeVar("T")

GONE = Response(status_code=499)
"""The answer for a client that has disconnected and never reads it."""
IMAGE_PATH = "/v1/drawn/"
"""Path of image URLs; it requires no key, because the names cannot be guessed."""
_MOST_BYTES = 64_000_000


async def event_stream(events: AsyncGenerator[JsonObject], *, is_ended: bool = False) -> Response:
    """Returns an answer that sends events one by one.

    It waits for the first event, so a refused request gets an error status; a later failure can
    only be sent as an event. With `is_ended` it sends `[DONE]` at the end, as chat completions do.

    Raises:
        ApiError: if the work fails before the first event.
    """
    first = await anext(events, None)
    if first is None:
        return GONE

    async def lines() -> AsyncGenerator[str]:
        try:
            yield _line(first)
            async for event in events:
                yield _line(event)
            if is_ended:
                yield "data: [DONE]\n\n"
        except ApiError as error:
            yield _line(error.body)
        finally:
            await events.aclose()

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(lines(), media_type="text/event-stream", headers=headers)


def _line(event: JsonObject) -> str:
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {json.dumps(event)}\n\n"


async def png(image: Image.Image) -> bytes:
    """Returns an image as the bytes of a PNG file."""

    def encode() -> bytes:
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()

    return await asyncio.to_thread(encode)


async def base64_png(image: Image.Image) -> str:
    """Returns an image as a PNG file in base64."""
    return base64.b64encode(await png(image)).decode()


class ResultCache(Generic[T]):
    """The latest results of a kind, in memory; beyond `max_bytes` the oldest are dropped.

    Callers choose names that cannot be guessed.
    """

    def __init__(self, max_bytes: int = _MOST_BYTES) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def put(self, name: str, result: T, size: int) -> None:
        """Stores a result of `size` bytes under a new name."""
        with self._lock:
            self._held[name] = (result, size)
            self._size += size
            while self._size > self._max_bytes and len(self._held) > 1:
                self._size -= self._held.popitem(last=False)[1][1]

    def get(self, name: str) -> T | None:
        """Returns the result of a name, or None if it is unknown or was dropped."""
        with self._lock:
            return self._held.get(name, (None, 0))[0]
