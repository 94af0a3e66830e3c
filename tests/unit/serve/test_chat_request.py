"""Requests for the next turn of a conversation, before they become jobs."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi")

from blip3o.core.types import Message
from blip3o.generate.text_sampling import TextSampling
from blip3o.serve.config import ServeConfig
from blip3o.serve.http.chat import _check, _head, _turn
from blip3o.serve.http.errors import ApiError, validated
from blip3o.serve.http.schemas import ChatCompletionRequest, ChatMessage
from blip3o.serve.http.service import Service
from blip3o.serve.jobs import ChatRequest, PictureRequest

TURN = {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    ("said", "read"), [("write <image> there", "write (a picture) there"), ("", ""), ("hi", "hi")]
)
def test_an_answer_can_be_sent_back_as_it_was_given(said: str, read: str) -> None:
    assert _turn(ChatMessage(role="assistant", content=said), "messages.1.content") == (read, [])


@pytest.mark.parametrize("said", ["write <image> there", ""])
def test_a_user_cannot_say_the_same(said: str) -> None:
    with pytest.raises(ApiError):
        _turn(ChatMessage(role="user", content=said), "messages.1.content")


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_field_that_is_wrong_is_named(name: str) -> None:
    service: Any = SimpleNamespace(config=ServeConfig(), check_model=lambda name: None)
    with pytest.raises(ApiError) as caught:
        _check(service, validated(ChatCompletionRequest, {"messages": [TURN], name: 9999}))
    assert caught.value.param == name


def test_the_seed_of_a_picture_is_told() -> None:
    service: Any = SimpleNamespace(name="m")
    assert _head(service, "chat.completion", PictureRequest(kind="generate", seed=7))["seed"] == 7
    chat = ChatRequest(messages=[], pictures=[], sampling=TextSampling())
    assert "seed" not in _head(service, "chat.completion", chat)


def test_far_too_long_texts_never_reach_the_tokenizer() -> None:
    """It holds the interpreter: seconds of it would stop every other request."""
    service: Any = object.__new__(Service)
    service.config = ServeConfig(max_prompt_tokens=10)
    service._pipe = None  # whoever asks the tokenizer fails
    turns = [Message(role="user", text="a" * 300), Message(role="assistant", text="a" * 201)]
    for ask in (
        lambda: service.check_chat(turns, []),
        lambda: service.prompt([], "a" * 501, "messages"),
    ):
        with pytest.raises(ApiError, match="501 characters of text; at most 500") as caught:
            ask()
        assert caught.value.status == 400
