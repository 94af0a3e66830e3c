"""The application: routes, errors, middleware."""

from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from blip3o import __version__
from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.serve.http.chat import chat_routes
from blip3o.serve.http.errors import ApiError, from_validation, invalid
from blip3o.serve.http.guard import Guard
from blip3o.serve.http.heads import HeadAsGet
from blip3o.serve.http.hosts import HostNames
from blip3o.serve.http.images import image_routes
from blip3o.serve.http.responses import response_routes
from blip3o.serve.http.service import Service
from blip3o.serve.http.system import not_found, system_routes, wrong_method
from blip3o.serve.http.uploads import UploadRoom


def build_app(
    service: Service, keys: Sequence[str] = (), hosts: HostNames | None = None
) -> FastAPI:
    """Returns the application of a service.

    Args:
        service: with engines that are started, or will be.
        keys: keys of which a client must send one; none for everybody.
        hosts: the names that requests may call the server by; None for any.
    """
    # FastAPI's own pages load scripts from elsewhere; /docs is ours.
    app = FastAPI(title="blip3o", version=__version__, docs_url=None, redoc_url=None)
    for routes in (image_routes, chat_routes, response_routes, system_routes):
        app.include_router(routes(service))
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(UsageError, _usage_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)
    app.add_middleware(HeadAsGet)
    app.add_middleware(UploadRoom)
    app.add_middleware(
        Guard, config=service.config, keys=keys, metrics=service.metrics, hosts=hosts
    )
    if service.config.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.config.cors_origin),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client for browsers sends a dozen of its own
            expose_headers=["Retry-After", "X-Should-Retry"],
        )
    return app


async def _api_error(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, ApiError)
    return error.response()


async def _usage_error(request: Request, error: Exception) -> Response:
    del request
    return invalid(str(error)).response()


async def _validation_error(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, RequestValidationError)
    return from_validation(error.errors()).response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return not_found().response()
    if error.status_code == 405:
        return wrong_method(request.method, error.headers).response()
    return ApiError(error.status_code, str(error.detail), headers=error.headers).response()


async def _bug(request: Request, error: Exception) -> Response:
    del request
    say(f"blip3o: a request failed: {type(error).__name__}: {error}")
    return ApiError(500, "an internal error; the server's log says more").response()
