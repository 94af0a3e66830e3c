"""The plug-in for lmms-eval (0.7 and later), which finds it as the model `blip3o`.

    lmms_eval --model blip3o --model_args pretrained=FOLDER --tasks mmmu_val

lmms-eval is installed separately and only imported by these functions. Its entry-point group
`lmms_eval.models` names `manifests`.

Reference:
    `registry_v2`, `api/model.py` and `api/task.py` of lmms-eval 0.7.3.
"""

import functools
import importlib
import itertools
import json
import os
import types
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.core.files import check_folder, write_atomic
from blip3o.core.log import progress, say
from blip3o.eval.kits import Drawing, KitModel, Turn, settings_of, turn_of
from blip3o.generate.text_settings import TextSettings
from blip3o.imaging.encode import to_png

_CLASS = "Blip3oLmms"
_READ = {"max_new_tokens", "temperature", "top_p", "top_k", "num_beams", "do_sample", "until"}
"""The settings of a task that are read."""


def manifests() -> object:
    """Returns the entry for lmms-eval's table of models.

    An error here would hide the models of all later plug-ins, so it does nothing else.
    """
    manifest = importlib.import_module("lmms_eval.models.registry_v2").ModelManifest
    return manifest(model_id="blip3o", chat_class_path=f"{__name__}.{_CLASS}")


class Request(Protocol):
    """A request of lmms-eval to a chat model.

    Attributes:
        args: context, `doc_to_messages`, settings, number of the document, task and split.
    """

    args: tuple[Any, ...]


class LmmsAnswers:
    """The methods that lmms-eval calls; `Blip3oLmms` joins them with its abstract class.

    Args:
        pretrained: a bundled model's name, a model folder or a hub id.
        output: "text" answers in words; "images" draws, for the tasks WISE, `gedit_bench` and
            `imgedit`: each answer is a JSON object that names the file.
        image_folder: folder of the drawn images.
        batch_size: images that are drawn together; answers in words are written one by one.
        device: device of the model; of several processes, each takes the GPU of its rank.
        max_batch_size: not used; lmms-eval gives it to all models.
        settings: other settings of `blip3o.eval.kits.KitSettings`, by name.

    Raises:
        UsageError: for an unknown setting or model.
    """

    is_simple = False

    _rank: int
    _world_size: int
    task_dict: Mapping[str, Mapping[str, Any]]
    cache_hook: Any

    def __init__(
        self,
        pretrained: str = "pocket",
        output: Literal["text", "images"] = "text",
        image_folder: str = "outputs/lmms_eval_images",
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        **settings: object,
    ) -> None:
        super().__init__()
        del max_batch_size
        if output not in ("text", "images"):
            raise UsageError(f"output must be text or images, got {output!r}")
        self._output, self._image_folder = output, Path(image_folder).absolute()
        if output == "images":
            check_folder(self._image_folder)
        self._batch_size = int(batch_size) if str(batch_size).isdigit() else 1
        self._rank = int(os.environ.get("RANK", "0"))
        self._world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if self._world_size > 1:
            # lmms-eval waits for all processes with this attribute of the model.
            self.accelerator = importlib.import_module("accelerate").Accelerator()
        self._settings = settings_of({**settings, "model": pretrained, "device": _device(device)})
        self._model: KitModel | None = KitModel(self._settings)

    @property
    def device(self) -> torch.device:
        """The device on which lmms-eval gathers numbers of several processes."""
        return self._loaded.pipe.device

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """Returns the answer to each request, in the order of the requests.

        Raises:
            UsageError: if a task asks for beams, or the model cannot read a document. A document
                that is passed over in silence would be scored as a wrong answer.
            NotImplementedError: if a document has a video or sound.
        """
        seen: Counter[tuple[object, ...]] = Counter()
        repeats = []
        for request in requests:
            document = request.args[3:6]
            repeats.append(seen[document])
            seen[document] += 1
        if self._output == "images":
            return self._drawn(requests, repeats)
        answers = []
        pairs = list(zip(requests, repeats, strict=True))
        for request, repeat in progress(pairs, what="answers"):
            context, _, given, *_ = request.args
            settings = _text_settings(given)
            settings["seed"] = self._settings.seed + repeat
            answer = self._loaded.answer(self._turns(request), **settings)
            self.cache_hook.add_partial("generate_until", (context, given), answer)
            answers.append(answer)
        return answers

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Raises a NotImplementedError: the model answers in words."""
        raise NotImplementedError(
            "blip3o answers in words and has no loglikelihood: use the generate_until form of the "
            "task"
        )

    def generate_until_multi_round(self, requests: Sequence[Request]) -> list[str]:
        """Raises a NotImplementedError: tasks of several rounds are not supported."""
        raise NotImplementedError("blip3o does not support tasks of several rounds")

    def clean(self) -> None:
        """Gives the memory of the model back before lmms-eval loads a judge."""
        self._model = None
        super().clean()  # pyrefly: ignore  (the class of lmms-eval follows in the order of classes)

    @property
    def _loaded(self) -> KitModel:
        if self._model is None:
            self._model = KitModel(self._settings)
        return self._model

    def _turns(self, request: Request) -> list[Turn]:
        _, doc_to_messages, _, number, task, split = request.args
        chat = importlib.import_module("lmms_eval.protocol").ChatMessages
        messages = chat(messages=doc_to_messages(self.task_dict[task][split][number])).messages
        return [
            turn_of(message.role, [_part(content, task) for content in message.content])
            for message in messages
        ]

    def _drawn(self, requests: Sequence[Request], repeats: Sequence[int]) -> list[str]:
        """Draws the image of each request; those with and without images to edit go separately."""
        drawings = []
        for request, repeat in zip(requests, repeats, strict=True):
            turns = [turn for turn in self._turns(request) if turn.role == "user"]
            prompt = "".join(text for turn in turns for text in turn.texts).strip()
            images = tuple(image for turn in turns for image in turn.images)
            drawings.append(Drawing(prompt, images, request.args[3], repeat))
        answers: dict[int, str] = {}
        places = sorted(range(len(drawings)), key=lambda place: bool(drawings[place].images))
        batches = [
            some[start : start + self._batch_size]
            for _, group in itertools.groupby(places, key=lambda p: bool(drawings[p].images))
            for some in [list(group)]
            for start in range(0, len(some), self._batch_size)
        ]
        for batch in progress(batches, what="batches of images"):
            images = self._loaded.draw([drawings[place] for place in batch])
            for place, image in zip(batch, images, strict=True):
                answers[place] = self._saved(requests[place], drawings[place].repeat, image)
        return [answers[place] for place in range(len(requests))]

    def _saved(self, request: Request, repeat: int, image: Image.Image) -> str:
        """Writes an image and returns the answer that names it."""
        context, _, given, number, task, split = request.args
        file = self._image_folder / str(task) / f"{split}-{number}-{repeat}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, to_png(image), is_shared=True)
        answer = json.dumps({"text": "", "images": [str(file)]})
        self.cache_hook.add_partial("generate_until", (context, given), answer)
        return answer


def _device(name: str | None) -> str:
    """Returns the device of this process."""
    is_one_of_several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if name in (None, "auto", "cuda") and is_one_of_several and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return name or "auto"


def _part(content: Any, task: object) -> tuple[bool, Any]:  # noqa: ANN401  (lmms-eval's own types)
    """Returns a content of a message as a part of a turn."""
    if content.type == "text":
        return False, content.text
    if content.type == "image":
        return True, content.url
    raise NotImplementedError(f"{task}: blip3o reads texts and images, not {content.type}")


def _text_settings(given: Mapping[str, Any]) -> TextSettings:
    """Returns the settings of a task for an answer in words."""
    if given.get("num_beams") not in (None, 1):
        raise UsageError(f"the task asks for {given['num_beams']} beams: blip3o has none, set 1")
    unread = tuple(sorted(name for name, value in given.items() if name not in _READ and value))
    if unread:
        _warn(unread)
    temperature = given.get("temperature")
    if temperature is None:
        temperature = 1.0 if given.get("do_sample") else 0.0
    if given.get("do_sample") is False:
        temperature = 0.0
    until = given.get("until") or ()
    settings: TextSettings = {
        "temperature": float(temperature),
        "top_p": given.get("top_p") or 1.0,
        "top_k": given.get("top_k") or 0,
        "stop": [until] if isinstance(until, str) else [text for text in until if text],
    }
    if given.get("max_new_tokens") is not None:
        settings["max_new_tokens"] = given["max_new_tokens"]
    return settings


@functools.cache
def _warn(names: tuple[str, ...]) -> None:
    say(f"warning: settings of the task that blip3o does not read: {', '.join(names)}")


@functools.cache
def _model_class() -> type:
    """Returns the class that lmms-eval loads; imports lmms-eval."""
    base = importlib.import_module("lmms_eval.api.model").lmms
    described = {"__module__": __name__, "__doc__": LmmsAnswers.__doc__}
    return types.new_class(_CLASS, (LmmsAnswers, base), {}, lambda names: names.update(described))


def __getattr__(name: str) -> type:
    """Returns `Blip3oLmms`, which exists only where lmms-eval is installed."""
    if name == _CLASS:
        return _model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
