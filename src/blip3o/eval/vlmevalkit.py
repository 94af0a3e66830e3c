"""The adapter for VLMEvalKit, which has no plug-ins: it adds a model to the kit's table.

    from vlmeval.config import supported_VLM
    from blip3o.eval.vlmevalkit import add_model

    add_model(supported_VLM, "BLIP3o-4B", model="FOLDER")

VLMEvalKit is installed separately and only imported when the kit makes the model.

Reference:
    `vlmeval/vlm/base.py`, `vlmeval/config.py` and `vlmeval/inference.py` of VLMEvalKit e8e78f05.
"""

import functools
import importlib
import types
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path

from blip3o.core.errors import UsageError
from blip3o.eval.kits import KitModel, Part, Turn, settings_of, turn_of

Content = Mapping[str, str]
"""A part of a message: {"type": "image" or "text", "value": file or text}."""


def add_model(
    supported: MutableMapping[str, Callable[..., object]], name: str = "blip3o", **settings: object
) -> None:
    """Adds a model to the kit's table `vlmeval.config.supported_VLM`.

    Args:
        supported: the table.
        name: name of the model in the table, for `run.py --model`.
        settings: settings of `blip3o.eval.kits.KitSettings`, by name.

    Raises:
        UsageError: for an unknown setting, or a name for which the kit adds settings of its own.
    """
    if any(other in name for other in ("Llama-4", "Qwen2-VL", "Qwen2.5-VL")):
        raise UsageError(f"VLMEvalKit treats {name} as another model: choose another name")
    settings_of(settings)
    supported[name] = functools.partial(_made, **settings)


class VlmAnswers:
    """The methods that VLMEvalKit calls; joined with its class `BaseModel`.

    Args:
        settings: settings of `blip3o.eval.kits.KitSettings`, by name.

    Raises:
        UsageError: for an unknown setting or model.
    """

    INTERLEAVE = True
    is_api = False

    def __init__(self, **settings: object) -> None:
        super().__init__()
        self._model = KitModel(settings_of(settings))

    def generate_inner(self, message: Sequence[Content], dataset: str | None = None) -> str:
        """Returns the answer to a message.

        Args:
            message: its parts in order.
            dataset: name of the kit's data set; answers do not depend on it.

        Raises:
            NotImplementedError: for a video.
        """
        del dataset
        return self._model.answer([_turn("user", message)])

    def chat_inner(
        self, messages: Sequence[Mapping[str, object]], dataset: str | None = None
    ) -> str:
        """Returns the next answer of a conversation.

        Args:
            messages: turns with `role` and `content`; a content is a list of parts.
            dataset: name of the kit's data set; answers do not depend on it.
        """
        del dataset
        turns = []
        for one in messages:
            content = one["content"]
            assert isinstance(content, Sequence), "the kit makes lists of parts"
            turns.append(_turn(str(one["role"]), content))
        return self._model.answer(turns)


def _turn(role: str, contents: Sequence[Content]) -> Turn:
    parts: list[tuple[bool, Part]] = []
    for one in contents:
        if one["type"] == "text":
            parts.append((False, one["value"]))
        elif one["type"] == "image":
            parts.append((True, Path(one["value"])))
        else:
            raise NotImplementedError(f"blip3o reads texts and images, not {one['type']}")
    return turn_of(role, parts)


def _made(**settings: object) -> object:
    """Returns a model as the kit expects it; imports VLMEvalKit."""
    return _model_class()(**settings)


@functools.cache
def _model_class() -> type:
    base = importlib.import_module("vlmeval.vlm.base").BaseModel
    described = {"__module__": __name__, "__doc__": VlmAnswers.__doc__}
    return types.new_class("Blip3o", (VlmAnswers, base), {}, lambda names: names.update(described))
