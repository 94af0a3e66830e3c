"""Keys: programs send bearer tokens; browsers send a password, only for the page."""

import base64
from typing import Any

import pytest

pytest.importorskip("fastapi")

from fastapi import FastAPI
from fastapi.testclient import TestClient

from blip3o.core.errors import UsageError
from blip3o.serve.config import ServeConfig
from blip3o.serve.http.hosts import HostNames
from blip3o.serve.http.metrics import Metrics
from blip3o.serve.http.request_checks import RequestChecks
from blip3o.serve.http.server import api_keys


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI(openapi_url=None)

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def answer(path: str) -> str:
        return path

    app.add_middleware(RequestChecks, config=ServeConfig(), keys=["secret"], metrics=Metrics())
    return TestClient(app)


def basic(key: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"me:{key}".encode()).decode()}


def asking(app: Any, target: str) -> TestClient:
    """Returns a client that sends a request target without normalizing it."""

    async def sent(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "path": target} if scope["type"] == "http" else scope, receive, send)

    return TestClient(sent)


FOREIGN = {**basic("secret"), "Sec-Fetch-Site": "cross-site"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {}, 401),
        ("GET", "/", basic("secret"), 200),
        ("GET", "/", basic("wrong"), 401),
        ("GET", "/", basic(""), 401),
        ("GET", "/", {"Authorization": "Basic @@@"}, 401),
        ("GET", "/", {"Authorization": "Bearer secret"}, 200),
        ("GET", "/", {"Authorization": "Bearer "}, 401),
        ("GET", "/", FOREIGN, 200),
        ("POST", "/gradio_api/queue/join", FOREIGN, 401),
        ("POST", "/gradio_api/queue/join", {**basic("secret"), "Sec-Fetch-Site": "same-site"}, 401),
        (
            "POST",
            "/gradio_api/queue/join",
            {**basic("secret"), "Sec-Fetch-Site": "same-origin"},
            200,
        ),
        ("GET", "/v1/models", basic("secret"), 401),
        ("GET", "/metrics", basic("secret"), 401),
        ("GET", "/v1/models", {"Authorization": "Bearer secret"}, 200),
        ("GET", "/health", {}, 200),
        ("GET", "/v1/drawn/name.png", {}, 200),
        ("GET", "/v1/images/name.png", {}, 401),
        ("POST", "/v1/images/generations", {}, 401),
        ("GET", "/docs", {}, 401),
        ("GET", "/docs", basic("secret"), 200),
        ("GET", "/openapi.json", basic("secret"), 200),
    ],
)
def test_which_requests_pass(
    client: TestClient, method: str, path: str, headers: dict[str, Any], status: int
) -> None:
    answer = client.request(method, path, headers=headers)
    assert answer.status_code == status
    if status == 401:
        kind = "Bearer" if path.startswith(("/v1", "/metrics")) else "Basic"
        assert answer.headers["WWW-Authenticate"].startswith(kind)


def test_white_space_around_keys_is_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BLIP3O_API_KEYS", "one, two ,,")
    assert api_keys(ServeConfig(api_key=(" three ",))) == ["three", "one", "two"]
    with pytest.raises(UsageError, match="--api-key is empty"):
        api_keys(ServeConfig(api_key=("",)))


def test_a_bug_is_counted_as_500_and_not_as_499() -> None:
    app, metrics = FastAPI(), Metrics()

    @app.get("/v1/bug")
    async def bug() -> None:
        raise RuntimeError("a bug")

    app.add_middleware(RequestChecks, config=ServeConfig(), keys=[], metrics=metrics)
    assert TestClient(app, raise_server_exceptions=False).get("/v1/bug").status_code == 500
    assert b'status="500"} 1.0' in metrics.text()
    assert b'status="499"' not in metrics.text()


TARGETS = ["//v1/models", "/v1//models", "/v1/models/", "///v1/models//"]
TARGETS += ["http://localhost/v1/models", "HTTPS://a.example:8000//v1/models/"]


@pytest.mark.parametrize("target", TARGETS)
def test_all_spellings_of_a_path_are_routed_and_checked(client: TestClient, target: str) -> None:
    sender = asking(client.app, target)
    answer = sender.get("/", headers={"Authorization": "Bearer secret"})
    assert (answer.status_code, answer.json()) == (200, "v1/models")
    for headers in ({}, basic("secret")):  # the API does not accept the page's password
        answer = sender.get("/", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("target", ["//x//y/", "/", "/file=a//b"])
def test_paths_of_the_page_are_unchanged(client: TestClient, target: str) -> None:
    answer = asking(client.app, target).get("/", headers=basic("secret"))
    assert answer.json() == target[1:]


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://127.0.0.1:8000/v1/models", 200),
        ("http://evil.example/v1/models", 403),
        ("http://localhost@evil.example/v1/models", 403),
        ("http://evil.example@localhost/v1/models", 403),
        ("http:///v1/models", 403),
    ],
)
def test_the_host_of_a_whole_url_counts(target: str, status: int) -> None:
    app = FastAPI(openapi_url=None)
    names = HostNames("127.0.0.1", [], has_keys=False)
    app.add_api_route("/v1/models", lambda: "seen")
    app.add_middleware(RequestChecks, config=ServeConfig(), keys=[], metrics=Metrics(), hosts=names)
    answer = asking(app, target).get("/", headers={"Host": "localhost"})
    assert answer.status_code == status
