"""The application and its socket, without a model."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient

from blip3o.core.errors import UsageError
from blip3o.serve.config import ServeConfig
from blip3o.serve.http.app import build_app
from blip3o.serve.http.metrics import Metrics
from blip3o.serve.http.server import _bind, _listen

OF_THE_CLIENT = "authorization,content-type,x-stainless-lang,x-stainless-os,x-stainless-timeout"


@pytest.mark.parametrize(("origin", "status"), [("https://a.example", 200), ("https://b", 400)])
def test_a_listed_origin_may_send_the_headers_of_clients(origin: str, status: int) -> None:
    config = ServeConfig(cors_origin=("https://a.example",))
    service: Any = SimpleNamespace(name="m", config=config, metrics=Metrics())
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": OF_THE_CLIENT,
    }
    client = TestClient(build_app(service, ["secret"]))
    assert client.options("/v1/chat/completions", headers=asked).status_code == status
    answer = client.get("/v1/models", headers={"Origin": origin})
    assert answer.headers.get("Access-Control-Allow-Origin") == (origin if status == 200 else None)
    if status == 200:
        assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]


def test_a_second_server_on_the_same_port_reports_it() -> None:
    first = _bind(ServeConfig(port=0))
    config = ServeConfig(port=first.getsockname()[1])
    with first, _bind(config) as second:  # both may bind as long as neither listens
        _listen(first, config)
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1:{config.port}"):
            _listen(second, config)
