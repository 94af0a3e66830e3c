"""Conversion of turns to messages for the model, and the places of their images."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi")

from blip3o.serve.config import ServeConfig
from blip3o.serve.http.completion_routes import _turn
from blip3o.serve.http.conversation import check_order, prompt_and_images, read_conversation
from blip3o.serve.http.errors import ApiError, validated
from blip3o.serve.http.turns import ChatMessage


class Reader:
    """Returns the URL instead of its image."""

    async def from_url(self, url: str, param: str) -> str:
        return f"{url}@{param}"


SERVICE: Any = SimpleNamespace(
    config=ServeConfig(max_images=3), reader=Reader(), check_chat=lambda *_: None
)


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def turns(*said: tuple[str, Any]) -> list[Any]:
    return [
        _turn(validated(ChatMessage, {"role": role, "content": content}), f"messages.{number}")
        for number, (role, content) in enumerate(said)
    ]


def read(*said: tuple[str, Any]) -> tuple[list[tuple[str, str]], list[Any]]:
    found = turns(*said)
    check_order(found, "messages")
    messages, images = asyncio.run(read_conversation(SERVICE, found, "messages"))
    return [(one.role, one.text) for one in messages], images


def drawn(*said: tuple[str, Any]) -> tuple[str, list[str]]:
    words, images = asyncio.run(prompt_and_images(SERVICE, turns(*said)))
    return words, [str(one).partition("@")[0] for one in images]


def test_the_developer_role_equals_the_system_role() -> None:
    user = ("user", "hi")
    assert read(("developer", "Be short."), user) == read(("system", "Be short."), user)
    both, _ = read(("system", "Be short."), ("developer", "Be kind."), user)
    assert both == [("system", "Be short.\n\nBe kind."), user]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_instructions_come_first_and_have_no_image(role: str) -> None:
    with pytest.raises(ApiError, match="must come first"):
        read(("user", "hi"), (role, "Be short."), ("user", "hi"))
    with pytest.raises(ApiError, match="contains an image"):
        read((role, [image("a")]), ("user", "hi"))


def test_the_last_turn_is_the_users() -> None:
    for last in ("assistant", "system"):
        with pytest.raises(ApiError, match="must be the user's"):
            read((last, "hi"))


@pytest.mark.parametrize(
    ("said", "heard"), [("write <image> there", "write (an image) there"), ("", ""), ("hi", "hi")]
)
def test_an_answer_can_be_sent_back_unchanged(said: str, heard: str) -> None:
    messages, _ = read(("user", "a"), ("assistant", said), ("user", "b"))
    assert messages[1] == ("assistant", heard)


@pytest.mark.parametrize("said", ["write <image> there", "", "  ", [], [text("")]])
def test_a_user_turn_cannot_be_empty_or_contain_a_mark(said: Any) -> None:
    with pytest.raises(ApiError) as caught:
        turns(("user", said))
    assert caught.value.param == "messages.0.content"


def test_an_image_of_an_answer_moves_to_the_next_user_turn() -> None:
    said = [
        ("user", [image("mine"), text("draw this in blue")]),
        ("assistant", [image("yours")]),
        ("user", [image("other"), text("compare them")]),
    ]
    messages, images = read(*said)
    assert messages == [
        ("user", "<image>\ndraw this in blue"),
        ("assistant", "(an image)"),
        ("user", "<image>\n<image>\ncompare them"),
    ]
    assert images == [
        "mine@messages.0.content.0.image_url.url",
        "yours@messages.1.content.0.image_url.url",
        "other@messages.2.content.0.image_url.url",
    ]


def test_images_of_several_answers_keep_their_order() -> None:
    shown = ("assistant", [text("here"), image("1")])
    messages, images = read(
        ("user", "a"), shown, ("assistant", [image("2")]), ("user", "b"), ("user", "c")
    )
    assert [words for _, words in messages[3:]] == ["<image>\n<image>\nb", "c"]
    assert messages[1] == ("assistant", "here\n(an image)")
    assert [str(one)[0] for one in images] == ["1", "2"]


def test_images_of_all_turns_count() -> None:
    shown = [("user", [image("a"), text("x")]), ("assistant", [image("b")])]
    with pytest.raises(ApiError, match="4 images; at most 3"):
        read(*shown, *shown, ("user", "x"))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([("user", "a car")], ("a car", [])),
        ([("user", [image("a"), text("blue")])], ("blue", ["a"])),
        ([("user", [image("a"), image("b"), text("blue")])], ("blue", ["a", "b"])),
        ([("user", "car"), ("assistant", [image("a")]), ("user", "blue")], ("blue", ["a"])),
        (
            [("user", [image("a"), text("x")]), ("assistant", [image("b")]), ("user", "blue")],
            ("blue", ["b"]),
        ),
        ([("user", [image("a"), text("x")]), ("assistant", "ok"), ("user", "y")], ("y", ["a"])),
        (
            [("user", "x"), ("assistant", [image("b")]), ("user", [text("y"), image("c")])],
            ("y", ["c"]),
        ),
    ],
)
def test_the_last_image_is_edited(said: Any, expected: Any) -> None:
    assert drawn(*said) == expected
