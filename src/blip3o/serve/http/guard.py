"""What every request passes before it is looked at: key, size, time and measurement."""

import asyncio
import base64
import hashlib
import hmac
import time
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blip3o.serve.config import ServeConfig
from blip3o.serve.http.errors import ApiError
from blip3o.serve.http.metrics import Metrics
from blip3o.serve.http.pictures_out import PICTURE_PATH

_OPEN_PATH = "/health"
"""Needs no key, as do pictures."""
_READ_PATHS = ("/docs", "/openapi.json")
"""Of the API, but for people: browsers send the key as a password."""
API_PATHS = ("/v1/", "/health", "/metrics", "/docs", "/openapi.json")
"""Where programs go; everything else is the page's, for people."""


class Guard:
    """ASGI middleware: keys, a limit and a time for bodies, and a count of what was answered.

    A body is read whole before the application sees the request, so a slow or endless one holds
    nothing but its own connection.

    Args:
        app: what is guarded.
        config: the limits.
        keys: keys of which a client must send one; none for everybody.
        metrics: where answers are counted.
    """

    def __init__(
        self, app: ASGIApp, config: ServeConfig, keys: Sequence[str], metrics: Metrics
    ) -> None:
        self._app = app
        self._config = config
        self._keys = [_digest(key.encode()) for key in keys]
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or has the application do it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        status = 499  # the client went away before an answer

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check_key(scope)
            body = await self._body(scope, receive)
            if body is not None:
                await self._app(scope, _replay(body, receive), noting)
        except ApiError as error:
            await error.response()(scope, receive, noting)
        except Exception:
            status = 500  # what stands around this answers it
            raise
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.answered(route, status, time.monotonic() - start)

    def _check_key(self, scope: Scope) -> None:
        path = scope["path"]
        is_open = path == _OPEN_PATH or path.startswith(PICTURE_PATH)
        if not self._keys or is_open or scope["method"] == "OPTIONS":
            return
        is_page = path in _READ_PATHS or not path.startswith(API_PATHS)
        given = _given_key(scope, is_page=is_page)
        digest = _digest(given)
        # All keys are compared, and all in the same time: it tells nothing about any of them.
        hits = [hmac.compare_digest(digest, known) for known in self._keys]
        if not given or not any(hits):
            challenge = 'Basic realm="blip3o: the API key is the password"' if is_page else "Bearer"
            raise ApiError(
                401,
                "a valid API key is needed: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": challenge},
            )

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Returns the body, or None if the client went away."""
        limit = self._config.max_body_bytes
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._config.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > limit:
                        raise _too_large(limit)
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError as error:
            raise ApiError(
                408,
                f"the body did not arrive within {self._config.body_timeout_s:g} seconds",
                code="body_timeout",
                headers={"Connection": "close"},
            ) from error


def _replay(body: bytes, receive: Receive) -> Receive:
    """Returns a receive that gives the body, and after that what the connection says."""
    is_given = False

    async def replayed() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _given_key(scope: Scope, *, is_page: bool) -> bytes:
    """Returns the key that a request comes with; browsers send it to the page as a password."""
    headers = dict(scope["headers"])
    kind, _, value = headers.get(b"authorization", b"").partition(b" ")
    if kind.lower() == b"bearer":
        return value.strip()
    # A browser sends a password along whoever made it ask: another site's page may only link here.
    is_foreign = headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin")
    if kind.lower() != b"basic" or not is_page or (is_foreign and scope["method"] != "GET"):
        return b""
    try:
        return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
    except ValueError:
        return b""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"the request is over {limit} bytes",
        code="request_too_large",
        headers={"Connection": "close"},
    )
