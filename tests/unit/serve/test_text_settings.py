"""Text settings from the fields of a request."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi")

from blip3o.core.types import Message
from blip3o.generate.text_sampling import TextSampling
from blip3o.serve.config import ServeConfig
from blip3o.serve.http.errors import ApiError, validated
from blip3o.serve.http.request_jobs import text_sampling
from blip3o.serve.http.schemas import ChatCompletionRequest
from blip3o.serve.http.service import Service

SERVICE: Any = SimpleNamespace(
    config=ServeConfig(max_answer_tokens=50), sampling=SimpleNamespace(max_new_tokens=20)
)


def written(**fields: Any) -> TextSampling:
    turn = {"role": "user", "content": "hello"}
    body = validated(ChatCompletionRequest, {"messages": [turn], **fields})
    return text_sampling(SERVICE, body, ("max_tokens", body.max_tokens), tuple(body.stop))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0},
        {"temperature": 0, "top_p": 0.5, "seed": 3},
        {"top_p": 1},
        {"top_p": 0},
        {"top_k": 0},
        {"top_k": -1},
        {"seed": 3},
        {"temperature": None, "top_p": None, "top_k": None, "seed": None, "stop": None},
        {"temperature": 1, "top_p": 0},
    ],
)
def test_answers_are_greedy_unless_a_client_asks_otherwise(fields: dict[str, Any]) -> None:
    assert written(**fields) == TextSampling(max_new_tokens=20)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 1}, (1.0, 1.0, 0)),
        ({"temperature": 0.7}, (0.7, 1.0, 0)),
        ({"top_p": 0.9}, (1.0, 0.9, 0)),
        ({"top_k": 5}, (1.0, 1.0, 5)),
        ({"temperature": 2, "top_p": 0.5, "top_k": 3}, (2.0, 0.5, 3)),
        ({"temperature": 0.5, "top_k": -1}, (0.5, 1.0, 0)),
    ],
)
def test_a_client_can_ask_for_sampling(fields: dict[str, Any], expected: Any) -> None:
    got = written(**fields, seed=9)
    assert (got.temperature, got.top_p, got.top_k, got.seed) == (*expected, 9)
    drawn = {written(**fields).seed for _ in range(3)}
    assert None not in drawn
    assert len(drawn) == 3


@pytest.mark.parametrize(
    ("stop", "expected"), [("a", ("a",)), (["a", "b"], ("a", "b")), ([], ()), (None, ())]
)
def test_stop_texts(stop: Any, expected: tuple[str, ...]) -> None:
    assert written(stop=stop).stop == expected
    assert written(stop=stop, temperature=1).stop == expected


def test_lengths() -> None:
    assert written(max_tokens=7).max_new_tokens == 7
    assert written(max_tokens=50).max_new_tokens == 50
    with pytest.raises(ApiError, match="max_tokens must be at most 50, got 51") as caught:
        written(max_tokens=51)
    assert caught.value.param == "max_tokens"


def test_image_settings_are_refused_by_name() -> None:
    with pytest.raises(ApiError, match="guidance_scale is only for answers with an image"):
        written(guidance_scale=3)


def test_far_too_long_texts_never_reach_the_tokenizer() -> None:
    """The tokenizer holds the GIL, so a long text would block all other requests."""
    service: Any = object.__new__(Service)
    service.config = ServeConfig(max_prompt_tokens=10)
    service._pipe = None  # any use of the tokenizer fails
    turns = [Message(role="user", text="a" * 300), Message(role="assistant", text="a" * 201)]
    for ask in (
        lambda: service.check_chat(turns, [], "messages"),
        lambda: service.prompt([], "a" * 501, "messages"),
    ):
        with pytest.raises(ApiError, match="501 characters of text; at most 500") as caught:
            ask()
        assert caught.value.status == 400
