"""Checks before a request is processed: key, size, time and host; and counts of answers."""

import asyncio
import base64
import hashlib
import hmac
import re
import time
from collections.abc import Sequence

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blip3o.serve.config import ServeConfig
from blip3o.serve.http.errors import ApiError, busy
from blip3o.serve.http.hosts import HostNames
from blip3o.serve.http.json_in import check_marks
from blip3o.serve.http.metrics import Metrics
from blip3o.serve.http.output import IMAGE_PATH
from blip3o.serve.http.workers import CLIENT_LEFT

_OPEN_PATH = "/health"
"""Path that needs no key; image URLs do not need one either."""
_READ_PATHS = ("/docs", "/openapi.json")
"""Paths of the API that people open; their browsers send the key as a password."""
API_PATHS = ("/v1/", "/health", "/metrics", "/docs", "/openapi.json")
"""Beginnings of the API's paths; all other paths belong to the page."""


class RequestChecks:
    """ASGI middleware that checks keys, hosts and bodies, and counts answers.

    A body is read completely before the application sees the request, so a slow or endless body
    occupies only its connection. Afterwards `CLIENT_LEFT` tells the
    application whether the client has disconnected.

    Args:
        app: the application.
        config: the limits.
        keys: valid API keys, of which clients must send one; none for open access.
        metrics: counts answers.
        hosts: host names that requests may use; None for any.
    """

    def __init__(
        self,
        app: ASGIApp,
        config: ServeConfig,
        keys: Sequence[str],
        metrics: Metrics,
        hosts: HostNames | None = None,
    ) -> None:
        self._app = app
        self._config = config
        self._keys = [_digest(key.encode()) for key in keys]
        self._metrics = metrics
        self._hosts = hosts
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # not supported
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        _set_target(scope)
        start = time.monotonic()
        status = 499  # if the client leaves before an answer

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        body = bytearray()
        try:
            self._check_key(scope)
            if await self._read(scope, receive, body):
                self._check_host(scope)
                if not _header(scope, b"content-type").lower().startswith(b"multipart/"):
                    check_marks(body)
                await self._watched(scope, receive, noting, bytes(body))
        except ApiError as error:
            await error.response()(scope, receive, noting)
        except Exception:
            status = 500  # the outer middleware sends this answer
            raise
        finally:
            self._held_bytes -= len(body)
            route = scope.get("route")
            path = route.path if isinstance(route, Route) else "other"
            self._metrics.answered(path, status, time.monotonic() - start)

    async def _watched(self, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
        """Calls the application, and sets `CLIENT_LEFT` when the client disconnects."""
        left = asyncio.Event()

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            left.set()

        async def disconnected() -> Message:
            await left.wait()
            return {"type": "http.disconnect"}

        watcher = asyncio.create_task(watch())
        token = CLIENT_LEFT.set(left)
        whole: Message = {"type": "http.request", "body": body, "more_body": False}
        try:
            await self._app(scope, replayed(whole, disconnected), send)
        finally:
            CLIENT_LEFT.reset(token)
            watcher.cancel()

    def _check_host(self, scope: Scope) -> None:
        """Refuses other host names; drops the header if answers must not repeat its name.

        Raises:
            ApiError: 403 if the request uses another name.
        """
        given = [value for name, value in scope["headers"] if name == b"host"]
        header = given[0].decode("latin-1") if given else None
        if self._hosts is None or header is None:
            return
        if not self._hosts.allows(header):
            raise ApiError(
                403,
                f"this server does not accept the host {header!a:.100}; start it with "
                "--allowed-host NAME to allow it",
                code="host_not_allowed",
            )
        if not self._hosts.knows(header) and scope["path"].startswith(API_PATHS):
            self._hosts.warn_unknown(header)
            scope["headers"] = [one for one in scope["headers"] if one[0] != b"host"]

    def _check_key(self, scope: Scope) -> None:
        path = scope["path"]
        is_open = path == _OPEN_PATH or path.startswith(IMAGE_PATH)
        if not self._keys or is_open:
            return
        is_page = path in _READ_PATHS or not path.startswith(API_PATHS)
        given = _given_key(scope, is_page=is_page)
        digest = _digest(given)
        # Every key is compared in constant time, so the timing reveals nothing.
        hits = [hmac.compare_digest(digest, known) for known in self._keys]
        if not given or not any(hits):
            challenge = 'Basic realm="blip3o: the API key is the password"' if is_page else "Bearer"
            raise ApiError(
                401,
                "a valid API key is required: send the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": challenge},
            )

    async def _read(self, scope: Scope, receive: Receive, body: bytearray) -> bool:
        """Reads the body; returns False if the client disconnected."""
        limit = self._config.max_body_bytes
        encoding = _header(scope, b"content-encoding")
        if encoding.lower() not in (b"", b"identity"):
            raise ApiError(
                415,
                f"Content-Encoding: {encoding.decode('latin-1'):.20} is not supported; send the "
                "body without compression",
                code="unsupported_encoding",
                headers={"Connection": "close"},
            )
        length = _header(scope, b"content-length")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        try:
            async with asyncio.timeout(self._config.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return False
                    piece = message.get("body", b"")
                    if len(body) + len(piece) > limit:
                        raise _too_large(limit)
                    self._hold(len(piece), len(body))
                    body += piece
                    if not message.get("more_body", False):
                        return True
        except TimeoutError as error:
            raise ApiError(
                408,
                f"the body did not arrive within {self._config.body_timeout_s:g} seconds",
                code="body_timeout",
                headers={"Connection": "close"},
            ) from error

    def _hold(self, size: int, own: int) -> None:
        """Counts bytes of bodies; a request may exceed the total while no other holds any."""
        total = self._held_bytes
        if size and total > own and total + size > self._config.max_bodies_bytes:
            raise busy("too many bytes of requests are being held", {"Connection": "close"})
        self._held_bytes += size


def replayed(first: Message, then: Receive) -> Receive:
    """Returns a `receive` that gives a message, and after it those of another `receive`."""
    is_given = False

    async def receive() -> Message:
        nonlocal is_given
        if is_given:
            return await then()
        is_given = True
        return first

    return receive


def _given_key(scope: Scope, *, is_page: bool) -> bytes:
    """Returns the key of a request; browsers send it to the page as a password."""
    kind, _, value = _header(scope, b"authorization").partition(b" ")
    if kind.lower() == b"bearer":
        return value.strip()
    # Browsers attach passwords to requests from any site; other sites may only link to the page.
    is_foreign = _header(scope, b"sec-fetch-site") not in (b"", b"none", b"same-origin")
    if kind.lower() != b"basic" or not is_page or (is_foreign and scope["method"] != "GET"):
        return b""
    try:
        return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
    except ValueError:
        return b""


def _header(scope: Scope, name: bytes) -> bytes:
    """Returns the value of a header; empty if it is missing."""
    return dict(scope["headers"]).get(name, b"")


def _set_target(scope: Scope) -> None:
    """Normalizes the path of a request, and moves its host into the header.

    Proxies send whole URLs. Clients that join a base URL and a path with extra slashes ask for
    /v1//models or /v1/models/.
    """
    scheme, _, rest = scope["path"].partition("://")
    if scheme.lower() in ("http", "https"):
        host, _, path = rest.partition("/")
        others = [one for one in scope["headers"] if one[0] != b"host"]
        scope["headers"] = [(b"host", host.encode()), *others]
        scope["path"] = f"/{path}"
    path = re.sub("/+", "/", scope["path"]).rstrip("/")
    if path.startswith(API_PATHS):
        scope["path"] = path


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"the request is over {limit} bytes",
        code="request_too_large",
        headers={"Connection": "close"},
    )
