"""The server's options are the fields of its config."""

import argparse
from typing import Any

import pytest

from blip3o.core.errors import UsageError
from blip3o.core.options import add_options, from_options
from blip3o.serve.config import ServeConfig


def parsed(*words: str) -> ServeConfig:
    parser = argparse.ArgumentParser()
    add_options(parser, ServeConfig)
    return from_options(ServeConfig, parser.parse_args(words))


def test_without_options_the_config_is_the_default() -> None:
    assert parsed() == ServeConfig()
    assert ServeConfig().host == "127.0.0.1"
    assert ServeConfig().image_host == ()


def test_options_of_every_type() -> None:
    config = parsed("--port", "1", "--timeout-s", "2.5", "--api-key", "a", "--api-key", "b")
    assert (config.port, config.timeout_s, config.api_key) == (1, 2.5, ("a", "b"))
    assert parsed("--unpadded-batches").unpadded_batches
    assert parsed("--model-alias", "gpt-4o", "--model-alias", "b").model_alias == ("gpt-4o", "b")


@pytest.mark.parametrize(
    "values",
    [
        {"max_batch": 0},
        {"timeout_s": float("inf")},
        {"max_n": -1},
        {"port": 65536},
        {"model_alias": ("",)},
        {"host": ""},
        {"host": " "},
    ],
)
def test_numbers_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ServeConfig(**values)
