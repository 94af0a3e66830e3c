"""The weights a run starts from: looked for before anything is written, then read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.models.unified import UnifiedModel
from blip3o.recipes import RECIPES
from blip3o.text.tokenizer import Tokenizer
from blip3o.train.config import InitConfig, RunConfig
from blip3o.weights.folder import BUNDLED, open_model, resolve_model_folder
from blip3o.weights.hub import to_local
from blip3o.weights.shards import StoredTensor, read
from blip3o.weights.siglip2_sana import is_siglip2_sana, load_siglip2_sana
from blip3o.weights.stored import sketch

Shapes = Mapping[str, tuple[int, ...]]
_BUNDLED = "pocket"
_HUB_PARTS = 2
"""organization/name"""


def check_start(config: RunConfig) -> None:
    """Refuses a run whose start weights are missing or do not fit; reads headers only.

    Args:
        config: the whole run.

    Raises:
        UsageError: naming the recipe that makes a missing model, or the parts that fit.
    """
    own = _shapes_of(sketch(config.model, Path("model")).state_dict()) if config.init else {}
    for number, init in enumerate(config.init):
        folder = _find(config, own, number)
        if not is_siglip2_sana(folder):  # built of two models, and checked when it is
            _check_fit(own, _shapes_of(open_model(folder).tensors), init, number)


def build_model(config: RunConfig) -> tuple[Tokenizer | None, UnifiedModel]:
    """Returns a run's model with the weights it starts from, and their tokenizer if any has one.

    Args:
        config: the whole run.

    Raises:
        UsageError: if weights cannot be read or do not fit.
    """
    torch.manual_seed(config.train.seed)
    model = config.model.build()
    tokenizer = None
    for number, init in enumerate(config.init):
        folder = _find(config, _shapes_of(model.state_dict()), number)
        if is_siglip2_sana(folder):
            tensors: Mapping[str, Tensor | StoredTensor] = load_siglip2_sana(Path(folder)).state()
        else:
            stored = open_model(folder)
            tokenizer = stored.tokenizer if tokenizer is None else tokenizer
            tensors = stored.tensors
        _take(model, tensors, init, number)
    return tokenizer, model


def _find(config: RunConfig, own: Shapes, number: int) -> str | Path:
    """Returns where a model to start from is; downloads it if it is on the hub."""
    name = config.init[number].folder
    maker = None if name in BUNDLED else _maker(name)
    try:
        # A stage's folder is no id of the hub, though it may look like one.
        folder = to_local(name) if maker is None else name
        return folder if is_siglip2_sana(folder) else resolve_model_folder(folder)
    except UsageError as error:
        if maker is None:
            raise UsageError(f"init.{number}.folder: {error}") from error
        raise UsageError(
            f"init.{number}.folder: there is no model in {name} yet. The recipe {maker} makes it: "
            f"blip3o train {maker} --out {name}{_from_bundled(config, own)}"
        ) from error


def _maker(folder: str) -> str | None:
    """Returns the recipe that leaves its model in a folder, if its name says so."""
    path = Path(folder)
    names = RECIPES.names()
    stage = f"{path.parent.name}.{path.name}"
    if stage in names:
        return stage
    fitting = [name for name in names if name.rpartition(".")[2] == path.name]
    return fitting[0] if len(fitting) == 1 and len(path.parts) > _HUB_PARTS else None


def _from_bundled(config: RunConfig, own: Shapes) -> str:
    """Returns how to start from the bundled model instead, if its weights fit."""
    missing = [k for k, init in enumerate(config.init) if _is_missing(init.folder)]
    try:
        stored = _shapes_of(open_model(_BUNDLED).tensors)
        for number in missing:
            _check_fit(own, stored, config.init[number], number)
    except UsageError:
        return ""
    changes = " ".join(f"init.{number}.folder={_BUNDLED}" for number in missing)
    return f". To start from the bundled model instead, add to your command: {changes}"


def _shapes_of(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of a state dict, in memory or in a file."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _is_missing(folder: str) -> bool:
    try:
        resolve_model_folder(folder)
    except UsageError:
        return True
    return False


def _take(
    model: UnifiedModel,
    stored: Mapping[str, Tensor | StoredTensor],
    init: InitConfig,
    number: int,
) -> None:
    """Reads parts of a stored model, tensor by tensor; every tensor of a part must fit."""
    own = model.state_dict()
    names = _check_fit(_shapes_of(own), _shapes_of(stored), init, number)
    with torch.no_grad():
        for name in names:
            own[name].copy_(read(stored[name]))


def _check_fit(own: Shapes, stored: Shapes, init: InitConfig, number: int) -> list[str]:
    """Returns the names of the weights that are taken; all of them must be there and fit."""
    names = [n for n in own if not init.parts or any(_is_of(n, part) for part in init.parts)]
    if not names:
        raise UsageError(f"init.{number}.parts {list(init.parts)} name no part of the model")
    unfit = [name for name in names if stored.get(name) != own[name]]
    if not unfit:
        return names
    there = stored.get(unfit[0])
    said = "missing there" if there is None else f"{list(there)} there"
    parts = list(dict.fromkeys(init.parts or (name.partition(".")[0] for name in own)))
    bad = [part for part in parts if any(_is_of(name, part) for name in unfit)]
    fitting = [part for part in parts if part not in bad]
    advice = (
        f"take the parts that fit, and learn the others from scratch: "
        f'"init.{number}.parts=[{", ".join(fitting)}]"'
        if fitting
        else "no part of it fits: start from another model, or from scratch (init=[])"
    )
    raise UsageError(
        f"weights of {init.folder} do not fit: {unfit[0]} is {list(own[unfit[0]])} in this run and "
        f"{said}; so it is with {len(unfit)} weights of {', '.join(bad)}. If the sizes are meant, "
        f"{advice}"
    )


def _is_of(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")
