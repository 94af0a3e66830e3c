"""The plug-in for lmms-eval, against a stub package with the names and rules of the real one."""

import importlib
import json
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from blip3o import Blip3oPipeline
from blip3o.core.errors import UsageError
from blip3o.core.rng import image_generator
from blip3o.eval import lmms
from blip3o.eval.kits import KitSettings
from blip3o.eval.lmms import LmmsAnswers

STUB = {
    "__init__.py": "",
    "models/__init__.py": "",
    "models/registry_v2.py": """
import dataclasses
@dataclasses.dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple = ()
    def __post_init__(self):
        if self.simple_class_path is None and self.chat_class_path is None:
            raise ValueError("at least one class path")
""",
    "api/__init__.py": "",
    "api/model.py": """
import abc
class CacheHook:
    def __init__(self):
        self.seen = []
    def add_partial(self, attribute, request, response):
        self.seen.append((attribute, request, response))
class lmms(abc.ABC):
    is_simple = True
    def __init__(self):
        self._rank, self._world_size = 0, 1
        self.cache_hook, self.task_dict = CacheHook(), {}
    @abc.abstractmethod
    def loglikelihood(self, requests): ...
    @abc.abstractmethod
    def generate_until(self, requests): ...
    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...
    @property
    def rank(self):
        return self._rank
    @property
    def world_size(self):
        return self._world_size
    def clean(self):
        self.is_clean = True
""",
    "protocol.py": """
import types
def content(one):
    return types.SimpleNamespace(**one)
class ChatMessages:
    def __init__(self, messages):
        self.messages = [
            types.SimpleNamespace(role=m["role"], content=[content(c) for c in m["content"]])
            for m in messages
        ]
""",
}


@pytest.fixture
def _kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the stub importable for one test."""
    for name, text in STUB.items():
        file = tmp_path / "site" / "lmms_eval" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    lmms._model_class.cache_clear()
    yield
    lmms._model_class.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "lmms_eval"]:
        del sys.modules[name]


class Request:
    """A request with the six arguments of a chat model."""

    def __init__(
        self,
        number: int,
        given: Mapping[str, Any] | None = None,
        to_messages: Callable[[Any], Any] | None = None,
        task: str = "task",
    ) -> None:
        given = {"max_new_tokens": 4} if given is None else given
        self.args = (f"context {number}", to_messages or messages_of, given, number, task, "test")


def messages_of(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [{"type": "image", "url": one} for one in document["images"]]
    return [{"role": "user", "content": [*content, {"type": "text", "text": document["text"]}]}]


DOCUMENTS = [
    {"images": [Image.new("RGB", (20, 12 + n), color)] if n != 2 else [], "text": f"what {n}"}
    for n, color in enumerate(("red", "blue", "green", "white"))
]


def made(folder: Path, **settings: Any) -> LmmsAnswers:
    """Returns the model as lmms-eval makes it."""
    model_class = importlib.import_module("blip3o.eval.lmms").Blip3oLmms
    model = model_class(pretrained=str(folder), device="cpu", dtype="fp32", **settings)
    model.task_dict = {"task": {"test": DOCUMENTS}}
    return model


@pytest.mark.usefixtures("_kit")
def test_the_entry_point_names_a_class_that_the_kit_accepts() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    module, _, function = project["project"]["entry-points"]["lmms_eval.models"][
        "blip3o"
    ].partition(":")
    manifest = getattr(importlib.import_module(module), function)()
    assert manifest.model_id == "blip3o"
    module, _, name = manifest.chat_class_path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert issubclass(found, importlib.import_module("lmms_eval.api.model").lmms)
    assert found.is_simple is False
    assert not found.__abstractmethods__
    assert f"{found.__module__}.{found.__name__}" == manifest.chat_class_path


@pytest.mark.usefixtures("_kit")
def test_answers_keep_the_order_of_requests_and_equal_the_pipeline(
    tiny_folder: Path, tiny_pipe: Blip3oPipeline
) -> None:
    model = made(tiny_folder)
    order = (3, 0, 2, 1)
    given: Sequence[dict[str, Any]] = [{"max_new_tokens": 2 + n % 2} for n in order]
    found = model.generate_until([Request(n, one) for n, one in zip(order, given, strict=True)])
    for number, settings, answer in zip(order, given, found, strict=True):
        document = DOCUMENTS[number]
        text = "<image>" * len(document["images"]) + document["text"]
        message = importlib.import_module("blip3o").Message(role="user", text=text)
        expected = "".join(tiny_pipe.stream([message], document["images"], **settings)).strip()
        assert answer == expected
    assert len(set(found)) > 1
    hook = [(f"context {n}", one) for n, one in zip(order, given, strict=True)]
    assert [entry[1] for entry in model.cache_hook.seen] == hook
    assert [entry[2] for entry in model.cache_hook.seen] == found


class Recorder:
    """Stands for the model and keeps what it was asked."""

    def __init__(self, settings: KitSettings) -> None:
        self.settings = settings
        self.asked: list[dict[str, Any]] = []
        self.pipe = type("Pipe", (), {"device": torch.device("cpu")})()

    def answer(self, turns: Any, **settings: Any) -> str:
        self.asked.append({"turns": turns, **settings})
        return str(len(self.asked))


@pytest.mark.usefixtures("_kit")
def test_the_settings_of_a_task_decide(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(lmms, "KitModel", Recorder)
    model = made(Path("model"), seed=5)
    cases: Sequence[tuple[dict[str, Any], dict[str, Any]]] = (
        ({}, {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "stop": []}),
        ({"max_new_tokens": 7, "until": "\n\n"}, {"max_new_tokens": 7, "stop": ["\n\n"]}),
        ({"until": ["a", ""], "num_beams": 1, "top_p": None}, {"stop": ["a"], "top_p": 1.0}),
        ({"temperature": 0, "do_sample": True}, {"temperature": 0.0}),
        ({"do_sample": True, "top_p": 0.5, "top_k": 3}, {"temperature": 1.0, "top_p": 0.5}),
        ({"temperature": 0.7, "do_sample": False}, {"temperature": 0.0}),
        ({"temperature": 0.7}, {"temperature": 0.7}),
    )
    for number, (given, expected) in enumerate(cases):
        model.generate_until([Request(0, given), Request(0, given)])
        first, second = model._loaded.asked[2 * number : 2 * number + 2]  # pyrefly: ignore
        assert expected.items() <= first.items(), given
        assert (first["seed"], second["seed"]) == (5, 6)
        assert ("max_new_tokens" in first) == ("max_new_tokens" in given)
    model.generate_until([Request(0, {"repetition_penalty": 2})])
    assert "does not read: repetition_penalty" in capsys.readouterr().err
    with pytest.raises(UsageError, match="3 beams"):
        model.generate_until([Request(0, {"num_beams": 3})])


@pytest.mark.usefixtures("_kit")
def test_published_settings_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmms, "KitModel", Recorder)
    settings = made(Path("model"), batch_size="auto", max_batch_size=8)._settings
    assert (settings.min_pixels, settings.max_pixels) == (256 * 28 * 28, 1605632)
    assert settings.max_new_tokens == 128
    with pytest.raises(UsageError, match="revison"):
        made(Path("model"), revison="main")
    with pytest.raises(UsageError, match="output must be text or images"):
        made(Path("model"), output="both")


@pytest.mark.usefixtures("_kit")
def test_turns_keep_their_roles_and_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmms, "KitModel", Recorder)
    model = made(Path("model"))
    red = Image.new("RGB", (4, 4), "red")

    def turns(document: Any) -> list[dict[str, Any]]:
        parts = [
            {"type": "text", "text": "see <image> "},
            {"type": "image", "url": red},
            {"type": "text", "text": " and"},
            {"type": "text", "text": " answer"},
        ]
        system = [{"type": "text", "text": "be brief"}]
        return [{"role": "system", "content": system}, {"role": "user", "content": parts}]

    model.generate_until([Request(0, {}, turns)])
    system, user = model._loaded.asked[0]["turns"]  # pyrefly: ignore
    assert system.message.text == "be brief"
    assert user.message.text == "see (an image) <image> and answer"
    assert user.images == (red,)

    def video(document: Any) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}]

    with pytest.raises(NotImplementedError, match="texts and images, not video"):
        model.generate_until([Request(0, {}, video)])


@pytest.mark.usefixtures("_kit")
@pytest.mark.parametrize("batch_size", [1, 3])
def test_drawn_images_are_named_in_json(
    batch_size: int, tiny_folder: Path, tiny_pipe: Blip3oPipeline, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    model = made(
        tiny_folder, output="images", image_folder=str(folder), batch_size=batch_size, seed=3
    )
    order = (3, 2, 0, 2)
    found = [json.loads(answer) for answer in model.generate_until([Request(n) for n in order])]
    files = [answer["images"] for answer in found]
    names = ["test-3-0.png", "test-2-0.png", "test-0-0.png", "test-2-1.png"]
    assert files == [[str(folder / "task" / name)] for name in names]
    assert all(answer["text"] == "" for answer in found)
    for number, repeat, (file,) in zip(order, (0, 0, 0, 1), files, strict=True):
        document, seed = DOCUMENTS[number], image_generator(3, number, repeat)
        if document["images"]:
            (expected,) = tiny_pipe.edit(
                [document["images"]], [document["text"]], generator=[seed]
            ).images
        else:
            (expected,) = tiny_pipe([document["text"]], generator=[seed]).images
        difference = torch.tensor(list(Image.open(file).tobytes())) - torch.tensor(
            list(expected.tobytes())
        )
        assert difference.abs().max() <= 1  # a batch may round otherwise
    assert len(model.cache_hook.seen) == 4


@pytest.mark.usefixtures("_kit")
def test_unsupported_requests_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmms, "KitModel", Recorder)
    model = made(Path("model"))
    with pytest.raises(NotImplementedError, match="no loglikelihood"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="several rounds"):
        model.generate_until_multi_round([])
    assert model.generate_until([]) == []
    model.clean()
    assert model._model is None
    assert vars(model)["is_clean"]


@pytest.mark.usefixtures("_kit")
def test_each_process_has_its_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lmms, "KitModel", Recorder)
    (tmp_path / "site" / "accelerate.py").write_text("class Accelerator: pass\n")
    monkeypatch.delitem(sys.modules, "accelerate", raising=False)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    model = made(Path("model"))
    assert (model.rank, model.world_size) == (3, 4)  # pyrefly: ignore
    assert type(model.accelerator).__name__ == "Accelerator"
    assert model.device == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert lmms._device(None) == lmms._device("cuda") == "cuda:1"
    assert lmms._device("cpu") == "cpu"
    monkeypatch.delitem(sys.modules, "accelerate")


def test_without_lmms_eval_the_package_imports_and_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    assert importlib.import_module("blip3o.eval.lmms")
    with pytest.raises(ModuleNotFoundError, match="lmms_eval"):
        lmms.manifests()
    with pytest.raises(AttributeError, match="no attribute"):
        _ = importlib.import_module("blip3o.eval.lmms").Other
