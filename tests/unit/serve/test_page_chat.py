"""The chat tab's events in Gradio; tests in a browser are in tests/e2e/page."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("fastapi")
gr = pytest.importorskip("gradio")


def test_a_new_conversation_cancels_running_answers(tmp_path: Path) -> None:
    from blip3o.serve.page.chat_tab import chat_tab

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    service: Any = None  # not used before the first request
    with gr.Blocks() as page:
        chat_tab(service, [str(tmp_path / "a.png")])
    events = list(page.fns.values())
    answers = {one._id for one in events if isinstance(one.fn, partial)}
    cancelled = [set(one.cancels) for one in events if one.cancels]
    assert len(answers) == 2  # for a sent message and for an example
    assert cancelled == [answers]
    (cleared,) = (one for one in events if one.name == "_clear")
    field, turns = cleared.fn()
    assert field["interactive"] if isinstance(field, dict) else field.interactive
    assert turns == []
    kinds = [type(output).__name__ for output in cleared.outputs]
    assert kinds == ["MultimodalTextbox", "Chatbot"]


def test_a_conversation_goes_on_after_an_answer_with_an_image_mark() -> None:
    from blip3o.serve.page.chat_tab import ChatPart, _part

    said: ChatPart = {"type": "text", "text": "write <image> there"}
    assert _part(said, "assistant", 9) == {"type": "text", "text": "write (an image) there"}
    assert _part(said, "user", 9) == said  # invalid, and refused by the API
    assert _part({"type": "file"}, "assistant", 9) == {"type": "text", "text": "(an image)"}
