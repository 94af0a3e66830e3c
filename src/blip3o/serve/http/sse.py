"""Server-sent events as OpenAI's clients read them."""

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response, StreamingResponse

from blip3o.serve.http.errors import ApiError

GONE = Response(status_code=499)
"""The answer to a client that has left; it is never read."""


async def event_stream(
    events: AsyncIterator[dict[str, Any]], *, is_ended: bool = False
) -> Response:
    """Returns the answer that sends events one by one.

    The first event is waited for, so a request that is refused gets its status; a later failure
    can only be told as an event.

    Args:
        events: JSON objects.
        is_ended: send `[DONE]` at the end, as chats do.

    Raises:
        ApiError: if the work fails before the first event.
    """
    first = await anext(events, None)
    if first is None:
        return GONE

    async def lines() -> AsyncIterator[str]:
        try:
            yield _line(first)
            async for event in events:
                yield _line(event)
            if is_ended:
                yield "data: [DONE]\n\n"
        except ApiError as error:
            yield _line(error.body)
        finally:
            await events.aclose()  # type: ignore[attr-defined]

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(lines(), media_type="text/event-stream", headers=headers)


def _line(event: dict[str, Any]) -> str:
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {json.dumps(event)}\n\n"
