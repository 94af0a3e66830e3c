"""Puts the page at `/` of the application."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blip3o.core.errors import UsageError
from blip3o.serve.http.guard import API_PATHS
from blip3o.serve.http.service import Service
from blip3o.serve.http.system import not_found, wrong_method
from blip3o.serve.http.uploads import UploadFolder

_POLICY = (
    "default-src 'self' data: blob:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'"
)
"""Browsers are told to ask nobody but this server."""

_RELAYS = ("/gradio_api/file=http:", "/gradio_api/file=https:", "/gradio_api/proxy=")
"""Paths under which Gradio would hand on what other servers answer."""

_OF_SCRIPTS = "/gradio_api/"
"""Paths that the page's scripts ask; they read Gradio's errors."""


def add_page(app: FastAPI, service: Service) -> None:
    """Adds the page to an application whose routes are all there.

    Args:
        app: the server's application.
        service: what the page hands its requests to.
    """
    # Gradio reads these when it is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    files = tempfile.mkdtemp(prefix="blip3o-page-")
    os.environ["GRADIO_TEMP_DIR"] = files
    atexit.register(shutil.rmtree, files, ignore_errors=True)
    import gradio as gr
    from gradio import image_utils, processing_utils

    from blip3o.serve.page.files import kept_image
    from blip3o.serve.page.look import CSS, HEAD, theme
    from blip3o.serve.page.tabs import build_page

    # Gradio would decode images of any size; the page reads them within the server's limits.
    # (Not by a component of our own: for such a class Gradio writes files beside the source.)
    _exchange(image_utils, "preprocess_image", _untouched)
    # Gradio would fetch whatever URL a client names in the place of a file.
    _exchange(processing_utils, "async_ssrf_protected_get", _refuse_url)
    # Gradio would rewrite a file in place while a browser reads it.
    _exchange(processing_utils, "save_pil_to_cache", kept_image)
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
    # Without this Gradio lets clients name any file of this machine in the place of an upload.
    _exchange(page, "has_launched", True)
    mounted = app.router.routes.pop()
    assert isinstance(mounted, Mount), "Gradio mounts itself last"
    app.router.routes.append(
        _PageMount("/", app=_Guarded(_WithApiErrors(mounted.app)), name="page")
    )
    app.state.uploads = UploadFolder(Path(files), service.config.max_upload_bytes)
    app.state.end_page = mounted.app.stop_event.set  # type: ignore[attr-defined]


def _exchange(owner: Any, name: str, own: Any) -> None:  # noqa: ANN401  (a module, an object)
    """Puts something of ours in the place of Gradio's; without it the page would not be safe.

    Raises:
        UsageError: if this Gradio has no such thing.
    """
    if not hasattr(owner, name):
        raise UsageError(
            f"the page does not know this version of Gradio (no {name}): pip install --upgrade "
            "'blip3o[page]', or serve with --no-page"
        )
    setattr(owner, name, own)


def _untouched(payload: Any, **_: Any) -> str | None:  # noqa: ANN401  (as Gradio calls it)
    return None if payload is None else payload.path


async def _refuse_url(url: str) -> Any:  # noqa: ANN401  (it never returns)
    import gradio as gr

    raise gr.Error("The page reads no URLs; choose a file.", print_exception=False)


class _PageMount(Mount):
    """Takes all paths but those of the API, whose errors are answered by the API."""

    def matches(self, scope: Scope) -> tuple[Match, Any]:
        """Returns whether a request is for the page."""
        if scope["path"].startswith(API_PATHS):
            return Match.NONE, {}
        return super().matches(scope)


class _WithApiErrors:
    """Answers paths and methods that the page does not have as the API answers them.

    A program may have left out the /v1 of its address. What Gradio's own scripts ask is left alone.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_OF_SCRIPTS):
            await self._app(scope, receive, send)
            return
        is_answered = False

        async def as_api(message: Message) -> None:
            nonlocal is_answered
            status = message.get("status")
            if status in (404, 405):
                is_answered = True
                headers = dict(Headers(raw=message["headers"]))
                error = not_found() if status == 404 else wrong_method(scope["method"], headers)
                await error.response()(scope, receive, send)
            elif not is_answered:
                await send(message)

        await self._app(scope, receive, as_api)


class _Guarded:
    """Adds the policy to every answer of the page, and fetches nothing for anybody."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _POLICY
                headers["Referrer-Policy"] = "same-origin"
            await send(message)

        is_relay = scope["path"].startswith(_RELAYS) if scope["type"] == "http" else False
        app = PlainTextResponse("not found", 404) if is_relay else self._app
        await app(scope, receive, with_policy)
