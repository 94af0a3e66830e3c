"""The adapter for VLMEvalKit, against a stub package with the names and rules of the real one."""

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip3o import Blip3oPipeline, Message
from blip3o.core.errors import UsageError
from blip3o.eval import vlmevalkit
from blip3o.eval.vlmevalkit import add_model

STUB = {
    "__init__.py": "",
    "vlm/__init__.py": "",
    "vlm/base.py": """
class BaseModel:
    INTERLEAVE = False
    allowed_types = ["text", "image", "video"]
    def __init__(self):
        self.dump_image_func = None
    def use_custom_prompt(self, dataset):
        return False
    def set_dump_image(self, function):
        self.dump_image_func = function
    def generate(self, message, dataset=None):
        for item in message:
            assert item["type"] in self.allowed_types
        return self.generate_inner(message, dataset)
    def chat(self, messages, dataset=None):
        assert hasattr(self, "chat_inner")
        return self.chat_inner(messages, dataset=dataset)
""",
}


@pytest.fixture
def _kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the stub importable for one test."""
    for name, text in STUB.items():
        file = tmp_path / "site" / "vlmeval" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    vlmevalkit._model_class.cache_clear()
    yield
    vlmevalkit._model_class.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "vlmeval"]:
        del sys.modules[name]


def made(folder: Path, **settings: Any) -> Any:
    """Returns a model as `run.py` of the kit makes it."""
    supported: dict[str, Callable[..., object]] = {}
    add_model(supported, "mine", model=str(folder), device="cpu", dtype="fp32", **settings)
    assert isinstance(supported["mine"], functools.partial)
    return supported["mine"]()


@pytest.mark.usefixtures("_kit")
def test_answers_equal_the_pipeline(
    tiny_folder: Path, tiny_pipe: Blip3oPipeline, tmp_path: Path
) -> None:
    model = made(tiny_folder, max_new_tokens=4)
    files = []
    for name, color in (("a", "red"), ("b", "blue")):
        files.append(tmp_path / f"{name}.png")
        Image.new("RGB", (20, 12), color).save(files[-1])
    message = [
        {"type": "image", "value": str(files[0])},
        {"type": "text", "value": "what is <image>"},
        {"type": "image", "value": str(files[1])},
        {"type": "text", "value": "?"},
    ]
    assert model.INTERLEAVE
    model.set_dump_image(print)
    text = "<image>what is (an image)<image>?"
    expected = "".join(tiny_pipe.stream([Message(role="user", text=text)], files, max_new_tokens=4))
    assert model.generate(message=message, dataset="MMBench") == expected.strip()
    assert not model.use_custom_prompt("MMBench")


@pytest.mark.usefixtures("_kit")
def test_a_conversation_keeps_its_turns(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(tiny_folder, max_new_tokens=4, system_prompt="be brief")
    heard: list[tuple[str, str]] = []

    def stream(self: Blip3oPipeline, messages: Any, images: Any, **settings: Any) -> list[str]:
        heard.extend((one.role, one.text) for one in messages)
        assert settings["max_new_tokens"] == 4
        return [" said", " so "]

    monkeypatch.setattr(Blip3oPipeline, "stream", stream)
    turns = [("user", "what?"), ("assistant", "a dog"), ("user", "a cat?")]
    messages = [
        {"role": role, "content": [{"type": "text", "value": text}]} for role, text in turns
    ]
    assert model.chat(messages, dataset="MMDU") == "said so"
    assert heard == [("system", "be brief"), *turns]
    heard.clear()
    own = {"role": "system", "content": [{"type": "text", "value": "be long"}]}
    model.chat([own, *messages])
    assert heard == [("system", "be long"), *turns]


@pytest.mark.usefixtures("_kit")
def test_a_video_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(NotImplementedError, match="texts and images, not video"):
        made(tiny_folder).generate([{"type": "video", "value": "a.mp4"}])


def test_settings_are_checked_before_the_kit_makes_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "vlmeval", None)
    supported: dict[str, Callable[..., object]] = {}
    with pytest.raises(UsageError, match="modle"):
        add_model(supported, "mine", modle="pocket")
    with pytest.raises(UsageError, match="choose another name"):
        add_model(supported, "BLIP3o-Qwen2.5-VL")
    assert not supported
    add_model(supported)
    with pytest.raises(ModuleNotFoundError, match="vlmeval"):
        supported["blip3o"]()
