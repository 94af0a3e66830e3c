"""HEAD wherever the API has GET: the same status and headers, without the body."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blip3o.serve.http.guard import API_PATHS


class HeadAsGet:
    """ASGI middleware: the application answers a HEAD as a GET, and the body is not sent.

    Args:
        app: what answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        is_head = scope["type"] == "http" and scope["method"] == "HEAD"
        if not is_head or not scope["path"].startswith(API_PATHS):
            await self._app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        asked = {**scope, "method": "GET"}
        try:
            await self._app(asked, receive, without_body)
        finally:
            if "route" in asked:  # what stands around this counts answers by their route
                scope["route"] = asked["route"]
