"""Routes about the server itself: models, health, metrics and a page that documents the API."""

import html
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from blip3o.serve.http.errors import ApiError
from blip3o.serve.http.service import Service

_STYLE = "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"


def system_routes(service: Service) -> APIRouter:
    """Returns the routes about the server."""
    router = APIRouter(tags=["server"])
    started = int(time.time())
    about = {"object": "model", "created": started, "owned_by": "blip3o"}

    @router.get("/v1/models", summary="The model, under each of its names")
    async def models() -> Response:
        cards = [{"id": name, **about} for name in service.names]
        return JSONResponse({"object": "list", "data": cards})

    @router.get("/v1/models/{name:path}", summary="One model")
    async def model(name: str) -> Response:
        service.check_model(name)
        return JSONResponse({"id": name, **about})

    @router.get("/health", summary="200 if the server accepts requests, else 503; needs no key")
    async def health() -> Response:
        state = {
            "status": "ok" if service.is_ready else "unavailable",
            "live": service.is_live,
            "ready": service.is_ready,
            "reason": service.queue.closed,
        }
        return JSONResponse(state, 200 if service.is_ready else 503)

    @router.get("/metrics", summary="Metrics for Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @router.get("/docs", summary="This page", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return HTMLResponse(_page(request.app.openapi()))

    return router


def not_found() -> ApiError:
    """Returns the error for an unknown path."""
    message = "no such path; see /docs for all paths (those of OpenAI's API begin with /v1)"
    return ApiError(404, message, code="not_found")


def wrong_method(method: str, headers: Mapping[str, str] | None) -> ApiError:
    """Returns the error for a wrong method; the header `Allow` lists the methods of the path."""
    allowed = {name.lower(): value for name, value in (headers or {}).items()}.get("allow")
    advice = f"; use {allowed}" if allowed else ""
    message = f"the path does not support {method:.20}{advice}"
    answer_headers = {"Allow": allowed} if allowed else {}
    return ApiError(405, message, code="method_not_allowed", headers=answer_headers)


def _page(schema: dict[str, Any]) -> str:
    """Returns the OpenAPI description as a page without external resources."""
    rows = []
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            rows.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            rows.append(f"<p>{html.escape(operation.get('summary', ''))}</p>")
            for kind, body in operation.get("requestBody", {}).get("content", {}).items():
                fields = _fields(schema, body["schema"])
                rows.append(f"<p>{html.escape(kind)}</p><ul>{fields}</ul>")
    title = html.escape(schema["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1>"
        f'<p><a href="/openapi.json">openapi.json</a></p>{"".join(rows)}</html>'
    )


def _fields(schema: dict[str, Any], body: dict[str, Any]) -> str:
    if "$ref" in body:
        body = schema["components"]["schemas"][body["$ref"].rpartition("/")[2]]
    required = body.get("required", [])
    items = []
    for name, field in body.get("properties", {}).items():
        default = "required" if name in required else f"default {field.get('default')!r}"
        items.append(f"<li><code>{html.escape(name)}</code> ({html.escape(default)})</li>")
    return "".join(items)
