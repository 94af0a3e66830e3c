"""Host names that the server accepts."""

import socket
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi")

from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from blip3o.serve.config import ServeConfig
from blip3o.serve.http.hosts import HostNames, host_of
from blip3o.serve.http.metrics import Metrics
from blip3o.serve.http.request_checks import RequestChecks

OWN = socket.gethostname()


@pytest.mark.parametrize(
    ("bound", "listed", "has_keys", "host", "is_allowed"),
    [
        ("127.0.0.1", (), False, "127.0.0.1:8000", True),
        ("127.0.0.1", (), False, "localhost", True),
        ("127.0.0.1", (), False, "LocalHost:8000", True),
        ("127.0.0.1", (), False, "localhost.:8000", True),
        ("127.0.0.1", (), False, "app.localhost:8000", True),
        ("127.0.0.1", (), False, "[::1]:8000", True),
        ("::1", (), False, "[::1]:8000", True),
        ("localhost", (), False, "127.0.0.1", True),
        ("127.0.0.1", (), False, "evil.example", False),
        ("127.0.0.1", (), True, "evil.example", False),
        ("127.0.0.1", (), False, "localhost.evil.example", False),
        ("127.0.0.1", (), False, "127.0.0.1.evil.example", False),
        ("127.0.0.1", (), False, "192.168.1.5", False),
        ("127.0.0.1", (), False, "", False),
        ("127.0.0.1", (), False, "localhost@evil.example", False),
        ("127.0.0.1", (), False, "localhost:80@evil.example", False),
        ("127.0.0.1", (), False, "localhost:evil", False),
        ("127.0.0.1", (), False, "[::1].evil.example", False),
        ("127.0.0.1", (), False, "[::1]:80@evil.example", False),
        ("127.0.0.1", (), False, "[::1", False),
        ("127.0.0.1", (), False, "::1", False),
        ("127.0.0.1", (), False, "localhost/evil", False),
        ("127.0.0.1", (), False, "localhost, evil.example", False),
        ("127.0.0.1", (), False, "[::ffff:127.0.0.1]:8000", True),
        ("127.0.0.1", (), False, "[::ffff:10.1.2.3]", False),
        ("127.0.0.1", (), False, "[0:0:0:0:0:0:0:1]", True),
        ("127.0.0.1", (), False, "2130706433", False),
        ("127.0.0.1", (), False, "127.1", False),
        ("127.0.0.1", ("draw.example",), False, "draw.example:443", True),
        ("127.0.0.1", ("draw.example",), False, "draw.example:443@evil.example", False),
        ("127.0.0.1", ("draw.example:8000",), False, "draw.example", True),
        ("127.0.0.1", ("Draw.Example",), False, "draw.example", True),
        ("127.0.0.1", ("draw.example",), False, "a.draw.example", False),
        ("127.0.0.1", ("*.draw.example",), False, "a.draw.example", True),
        ("127.0.0.1", ("*.draw.example",), False, "evildraw.example", False),
        ("127.0.0.1", ("*",), False, "evil.example", True),
        ("0.0.0.0", (), False, "10.1.2.3:8000", True),
        ("0.0.0.0", (), False, "[fd00::1]:8000", True),
        ("0.0.0.0", (), False, OWN, True),
        ("0.0.0.0", (), False, "evil.example", False),
        ("0.0.0.0", (), True, "draw.example", True),
        ("0.0.0.0", ("draw.example",), True, "evil.example", False),
        ("10.1.2.3", (), False, "10.1.2.3", True),
        ("gpu1.lan", (), False, "gpu1.lan:8000", True),
    ],
)
def test_which_names_are_accepted(
    bound: str, listed: tuple[str, ...], has_keys: bool, host: str, is_allowed: bool
) -> None:
    names = HostNames(bound, listed, has_keys=has_keys)
    assert names.allows(host) == is_allowed
    assert names.allows(None)  # browsers always send it


def test_names_accepted_because_of_a_key_are_not_repeated() -> None:
    names = HostNames("0.0.0.0", (), has_keys=True)
    assert names.allows("draw.example")
    assert not names.knows("draw.example")
    assert host_of("[::1]:80") == "::1"


def client(**settings: Any) -> TestClient:
    app = FastAPI(openapi_url=None)

    @app.api_route("/{path:path}", methods=["GET", "POST", "OPTIONS"])
    async def answer(path: str, request: Request) -> str:
        del path
        return str(request.base_url)

    options: Any = {"config": ServeConfig(), "keys": [], "metrics": Metrics(), **settings}
    app.add_middleware(RequestChecks, **options)
    return TestClient(app, base_url="http://localhost:8000")


def test_dns_rebinding_is_refused() -> None:
    here = client(hosts=HostNames("127.0.0.1", (), has_keys=False))
    foreign = {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}
    for method, path in (
        ("GET", "/"),
        ("GET", "/v1/models"),
        ("GET", "/health"),
        ("POST", "/v1/images/generations"),
        ("OPTIONS", "/v1/models"),
        ("POST", "/gradio_api/queue/join"),
    ):
        answer = here.request(method, path, headers=foreign)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "host_not_allowed"
        assert "--allowed-host" in answer.json()["error"]["message"]
    assert here.get("/v1/models").json() == "http://localhost:8000/"


def test_urls_in_answers_never_contain_an_unknown_host(
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = client(keys=["k"], hosts=HostNames("0.0.0.0", (), has_keys=True))
    key = {"Authorization": "Bearer k"}
    for _ in range(2):
        answer = here.get("/v1/models", headers={**key, "Host": "evil.example"})
        assert "evil" not in answer.json()
    assert capsys.readouterr().err.count("--allowed-host") == 1
    page = here.get("/", headers={**key, "Host": "draw.example"})
    assert page.json() == "http://draw.example/"  # the page may repeat the name
    listed = client(hosts=HostNames("0.0.0.0", ("draw.example",), has_keys=True))
    assert listed.get("/v1/a", headers={"Host": "draw.example"}).json() == "http://draw.example/"


def test_an_options_request_needs_the_key_but_a_preflight_does_not() -> None:
    from blip3o.serve.http.app import build_app

    plain = client(keys=["secret"])
    assert plain.options("/v1/models").status_code == 401
    assert plain.options("/").status_code == 401
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert plain.options("/v1/models", headers=asked).status_code == 401
    key = {"Authorization": "Bearer secret"}
    assert plain.options("/v1/models", headers=key).status_code == 200
    config = ServeConfig(cors_origin=("https://a.example",))
    service: Any = SimpleNamespace(name="m", config=config, metrics=Metrics())
    open_to_one = TestClient(build_app(service, ["secret"]))
    assert open_to_one.options("/v1/models", headers=asked).status_code == 200
    assert open_to_one.options("/v1/models").status_code == 401
    other = {**asked, "Origin": "https://b.example"}
    assert open_to_one.options("/v1/models", headers=other).status_code == 400


def test_bodies_of_all_requests_together_have_a_limit() -> None:
    here = client(config=ServeConfig(max_bodies_bytes=10))
    assert (
        here.post("/v1/a", content=b"x" * 100).status_code == 200
    )  # a single request may exceed it
    checks: Any = here.app
    while not isinstance(checks, RequestChecks):
        inner: Any = checks
        checks = inner.middleware_stack if isinstance(inner, FastAPI) else inner.app
    checks._held_bytes += 5
    answer = here.post("/v1/a", content=b"x" * 100)
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "1"
    checks._held_bytes -= 5
    assert checks._held_bytes == 0
    assert here.post("/v1/a", content=b"x" * 100).status_code == 200


def test_web_sockets_are_refused() -> None:
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), client(keys=["k"]).websocket_connect("/v1/models"):
        pass
