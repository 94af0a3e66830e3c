"""Mounts the page at `/`, with the unsafe parts of Gradio replaced or blocked."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Protocol

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blip3o.core.errors import UsageError
from blip3o.serve.http.request_checks import API_PATHS
from blip3o.serve.http.service import Service
from blip3o.serve.http.system_routes import not_found, wrong_method
from blip3o.serve.http.uploads import UploadFolder

_POLICY = (
    "default-src 'self' data: blob:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'"
)
"""Allows browsers to contact only this server."""

_RELAYS = ("/gradio_api/file=http:", "/gradio_api/file=https:", "/gradio_api/proxy=")
"""Paths under which Gradio would relay answers of other servers."""

_SCRIPT_PATHS = "/gradio_api/"
"""Paths used by the page's scripts, which expect Gradio's errors."""


class _File(Protocol):
    """A file that Gradio passes to an image field."""

    path: str | None


def add_page(app: FastAPI, service: Service) -> Callable[[], None]:
    """Adds the page to an application; call it after all other routes have been added.

    Args:
        app: the server's application.
        service: handles the requests of the page.

    Returns:
        A function that ends the page's open connections.
    """
    # Gradio reads these variables when it is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    files = tempfile.mkdtemp(prefix="blip3o-page-")
    os.environ["GRADIO_TEMP_DIR"] = files
    atexit.register(shutil.rmtree, files, ignore_errors=True)
    import gradio as gr
    from gradio import image_utils, processing_utils

    from blip3o.serve.page.files import kept_image
    from blip3o.serve.page.layout import CSS, HEAD, build_page, theme

    # Gradio would decode images of any size; the page reads them within the server's limits.
    # (A component class of the page would not do: Gradio writes files next to its source.)
    _replace(image_utils, "preprocess_image", _undecoded)
    # Gradio would fetch any URL that a client sends instead of a file.
    _replace(processing_utils, "async_ssrf_protected_get", _refuse_url)
    # Gradio would rewrite a file in place while a browser reads it.
    _replace(processing_utils, "save_pil_to_cache", kept_image)
    page = build_page(service, Path(files))
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=theme(),
        css=CSS,
        head=HEAD,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=service.config.max_image_bytes,
    )
    # Without this, Gradio accepts the path of any file on this machine instead of an upload.
    _replace(page, "has_launched", True)
    mounted = app.router.routes.pop()
    assert isinstance(mounted, Mount), "Gradio mounts itself last"
    gradio_app = mounted.app
    assert isinstance(gradio_app, gr.routes.App)
    app.router.routes.append(_PageMount("/", app=_PageApp(gradio_app), name="page"))
    app.state.uploads = UploadFolder(Path(files), service.config.max_upload_bytes)
    return gradio_app.stop_event.set


def _replace(owner: object, name: str, own: object) -> None:
    """Replaces an attribute of Gradio; the page would not be safe otherwise.

    Raises:
        UsageError: if this version of Gradio does not have it.
    """
    if not hasattr(owner, name):
        raise UsageError(
            f"the page does not support this version of Gradio (no {name}): pip install --upgrade "
            "'blip3o[page]', or serve with --no-page"
        )
    setattr(owner, name, own)


def _undecoded(payload: _File | None, **_: object) -> str | None:
    return None if payload is None else payload.path


async def _refuse_url(url: str) -> NoReturn:
    import gradio as gr

    raise gr.Error("The page does not read URLs; choose a file.", print_exception=False)


class _PageMount(Mount):
    """Matches all paths except those of the API, which answers its unknown paths itself."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Returns whether a request is for the page."""
        if scope["path"].startswith(API_PATHS):
            return Match.NONE, {}
        return super().matches(scope)


class _PageApp:
    """Makes Gradio's answers safe and similar to those of the API.

    Every answer gets the content security policy, and the relays are blocked. Unknown paths and
    wrong methods get errors of the API, because they may come from a program whose base URL lacks
    /v1; paths of Gradio's scripts keep Gradio's errors.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _POLICY
                headers["Referrer-Policy"] = "same-origin"
            await send(message)

        is_answered = False

        async def as_api(message: Message) -> None:
            nonlocal is_answered
            status = message.get("status")
            if status in (404, 405):
                is_answered = True
                headers = dict(Headers(raw=message["headers"]))
                error = not_found() if status == 404 else wrong_method(scope["method"], headers)
                await error.response()(scope, receive, with_policy)
            elif not is_answered:
                await with_policy(message)

        if scope["type"] != "http" or scope["path"].startswith(_SCRIPT_PATHS):
            is_relay = scope["type"] == "http" and scope["path"].startswith(_RELAYS)
            app = PlainTextResponse("not found", 404) if is_relay else self._app
            await app(scope, receive, with_policy)
        else:
            await self._app(scope, receive, as_api)
