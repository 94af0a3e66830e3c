"""Paths and methods: HEAD as GET, and one error format for unknown paths."""

from typing import Any

import pytest

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient

from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.serve.config import ServeConfig
from blip3o.serve.http.app import build_app
from blip3o.serve.http.service import Service


@pytest.fixture(params=["bare", "with the page"])
def app(request: pytest.FixtureRequest, tiny_pipe: Blip3oPipeline) -> Any:
    service = Service([tiny_pipe], "m", ServeConfig())
    app = build_app(service, ["secret"])
    if request.param == "with the page":
        pytest.importorskip("gradio")
        from starlette.applications import Starlette
        from starlette.routing import Mount

        from blip3o.serve.page.mount import _PageApp, _PageMount

        assert issubclass(_PageMount, Mount)
        app.router.routes.append(_PageMount("/", app=_PageApp(Starlette())))
    return app


@pytest.fixture
def client(app: Any) -> TestClient:
    return TestClient(app, headers={"Authorization": "Bearer secret"})


@pytest.mark.parametrize(
    "path", ["/health", "/v1/models", "/v1/models/m", "/metrics", "/docs", "/openapi.json"]
)
def test_head_is_a_get_without_its_body(client: TestClient, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert head.status_code == get.status_code
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    if path != "/metrics":  # its values grow with each request
        assert head.headers["content-length"] == str(len(get.content))


def test_a_head_needs_the_key_that_a_get_needs(app: Any) -> None:
    stranger = TestClient(app)
    assert stranger.head("/v1/models").status_code == 401
    assert stranger.head("/health").status_code == stranger.get("/health").status_code


def test_a_head_is_counted_by_its_route(client: TestClient) -> None:
    client.head("/v1/models/m")
    assert b'blip3o_requests_total{route="/v1/models/{name}"' in client.get(
        "/metrics"
    ).content.replace(b"{name:path}", b"{name}")


@pytest.mark.parametrize(
    "path",
    ["/nosuch", "/v1/nosuch", "/chat/completions", "/v1", "/v1/responses/resp_1", "/v1/files"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_an_unknown_path_gets_an_error_of_the_api(
    client: TestClient, method: str, path: str
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("not_found_error", "not_found")
    assert "/v1" in error["message"]
    assert client.head(path).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("HEAD", "/v1/responses", "POST"),
        ("DELETE", "/v1/responses", "POST"),
        ("PUT", "/v1/images/generations", "POST"),
        ("POST", "/health", "GET"),
        ("POST", "/v1/models", "GET"),
    ],
)
def test_the_error_for_a_wrong_method_names_the_right_one(
    client: TestClient, method: str, path: str, allowed: str
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed
    if method != "HEAD":
        error = answer.json()["error"]
        assert error["code"] == "method_not_allowed"
        assert error["message"].endswith(f"use {allowed}")
