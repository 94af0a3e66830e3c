"""The server's options alone limit requests; no constant overrides them."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi")

from blip3o.serve.config import ServeConfig
from blip3o.serve.http.errors import ApiError, validated
from blip3o.serve.http.request_jobs import check_number
from blip3o.serve.http.schemas import GenerationRequest


def test_max_n_may_be_raised() -> None:
    service: Any = SimpleNamespace(config=ServeConfig(max_n=20))
    check_number(service, validated(GenerationRequest, {"prompt": "a cat", "n": 20}).n)
    with pytest.raises(ApiError, match="n must be at most 20, got 21"):
        check_number(service, validated(GenerationRequest, {"prompt": "a cat", "n": 21}).n)
