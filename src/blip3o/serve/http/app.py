"""The application: routes, error handlers and middleware."""

from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blip3o import __version__
from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.serve.http.completion_routes import completion_routes
from blip3o.serve.http.errors import ApiError, from_validation, invalid
from blip3o.serve.http.hosts import HostNames
from blip3o.serve.http.image_routes import image_routes
from blip3o.serve.http.request_checks import API_PATHS, RequestChecks
from blip3o.serve.http.response_routes import response_routes
from blip3o.serve.http.service import Service
from blip3o.serve.http.system_routes import not_found, system_routes, wrong_method
from blip3o.serve.http.uploads import UploadRoom


def build_app(
    service: Service, keys: Sequence[str] = (), hosts: HostNames | None = None
) -> FastAPI:
    """Returns the application of a service.

    Args:
        service: the service; its engines may be started later.
        keys: valid API keys, of which clients must send one; none for open access.
        hosts: host names that requests may use; None for any.
    """
    # FastAPI's own /docs loads scripts from other sites; system_routes has one that does not.
    app = FastAPI(title="blip3o", version=__version__, docs_url=None, redoc_url=None)
    for routes in (image_routes, completion_routes, response_routes, system_routes):
        app.include_router(routes(service))
    for kind in (ApiError, UsageError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer_error)
    app.add_middleware(HeadAsGet)
    app.add_middleware(UploadRoom)
    app.add_middleware(
        RequestChecks, config=service.config, keys=keys, metrics=service.metrics, hosts=hosts
    )
    if service.config.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.config.cors_origin),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client for browsers sends a dozen special headers
            expose_headers=["Retry-After", "X-Should-Retry"],
        )
    return app


class HeadAsGet:
    """ASGI middleware that answers HEAD requests to the API like GET, without the body.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        is_head = scope["type"] == "http" and scope["method"] == "HEAD"
        if not is_head or not scope["path"].startswith(API_PATHS):
            await self._app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        as_get = {**scope, "method": "GET"}
        try:
            await self._app(as_get, receive, without_body)
        finally:
            if "route" in as_get:  # the middleware counts answers by route
                scope["route"] = as_get["route"]


async def _answer_error(request: Request, error: Exception) -> Response:
    """Returns the answer for an error, in the format of the API."""
    match error:
        case ApiError():
            answer = error
        case UsageError():
            answer = invalid(str(error))
        case RequestValidationError():
            answer = from_validation(error.errors())
        case HTTPException(status_code=404):
            answer = not_found()
        case HTTPException(status_code=405):
            answer = wrong_method(request.method, error.headers)
        case HTTPException():
            answer = ApiError(error.status_code, str(error.detail), headers=error.headers)
        case _:
            say(f"blip3o: a request failed: {type(error).__name__}: {error}")
            answer = ApiError(500, "an internal error; the server's log says more")
    return answer.response()
