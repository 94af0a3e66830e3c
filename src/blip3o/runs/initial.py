"""Finds the weights that a run starts from, checks that they fit, and reads them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.models.unified import UnifiedModel
from blip3o.recipes import RECIPES
from blip3o.recipes.stages import DATA
from blip3o.text.tokenizer import Tokenizer
from blip3o.train.config import InitConfig, RunConfig
from blip3o.train.optimizer import is_under
from blip3o.weights.autoencoder import is_autoencoder, open_autoencoder
from blip3o.weights.folder import BUNDLED, open_model, resolve_model_folder
from blip3o.weights.hub import to_local
from blip3o.weights.layouts import is_siglip2_sana
from blip3o.weights.shards import StoredTensor, read
from blip3o.weights.siglip2_sana import load_siglip2_sana
from blip3o.weights.stored import sketch

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by name."""

_BUNDLED = "pocket"
_HUB_PARTS = 2
"""A name on the hub has two parts: organization/name."""


def check_start(config: RunConfig) -> None:
    """Checks that the start weights of a run exist and fit; reads only the headers of files.

    Raises:
        UsageError: if not; names the recipe that trains a missing model, or the parts that fit.
    """
    own = _shapes_of(sketch(config.model, Path("model")).state_dict()) if config.init else {}
    for number, init in enumerate(config.init):
        folder = _find(config, own, number)
        if not is_siglip2_sana(folder):  # combines two models and is checked when it is loaded
            _check_fit(own, _shapes_of(_open(folder, config)[1]), init, number)


def build_model(config: RunConfig) -> tuple[Tokenizer | None, UnifiedModel]:
    """Returns the first tokenizer stored with a run's start weights, if any, and the run's model.

    Raises:
        UsageError: if weights cannot be read or do not fit.
    """
    torch.manual_seed(config.train.seed)
    model = config.model.build()
    tokenizer = None
    for number, init in enumerate(config.init):
        folder = _find(config, _shapes_of(model.state_dict()), number)
        found, tensors = _open(folder, config)
        tokenizer = found if tokenizer is None else tokenizer
        _take(model, tensors, init, number)
    return tokenizer, model


def _open(
    folder: str | Path, config: RunConfig
) -> tuple[Tokenizer | None, Mapping[str, Tensor | StoredTensor]]:
    """Returns the tokenizer of a start model, if it has one, and its weights by our names."""
    if is_siglip2_sana(folder):
        return None, load_siglip2_sana(Path(folder)).state()
    if is_autoencoder(folder):
        return None, open_autoencoder(Path(folder), config.model)
    stored = open_model(folder)
    return stored.tokenizer, stored.tensors


def _find(config: RunConfig, own: Shapes, number: int) -> str | Path:
    """Returns the folder of a start model; downloads it if it is on the hub."""
    name = config.init[number].folder
    recipe = None if name in BUNDLED else _recipe_of(name)
    try:
        # The folder of a stage may look like a name on the hub.
        folder = to_local(name) if recipe is None else name
        return folder if is_siglip2_sana(folder) else resolve_model_folder(folder)
    except UsageError as error:
        if recipe is None:
            raise UsageError(f"init.{number}.folder: {error}") from error
        raise UsageError(
            f"init.{number}.folder: {name} holds no model yet. The recipe {recipe} trains it: "
            f"blip3o train {recipe} --out {name}{_from_bundled(config, own)}"
        ) from error


def _recipe_of(folder: str) -> str | None:
    """Returns the recipe that writes its model to a folder, guessed from the folder's name."""
    path = Path(folder)
    if path.is_relative_to(DATA):  # downloaded, not trained
        return None
    names = RECIPES.names()
    stage = f"{path.parent.name}.{path.name}"
    if stage in names:
        return stage
    matches = [name for name in names if name.rpartition(".")[2] == path.name]
    return matches[0] if len(matches) == 1 and len(path.parts) > _HUB_PARTS else None


def _from_bundled(config: RunConfig, own: Shapes) -> str:
    """Returns advice on starting from the bundled model; empty if its weights do not fit."""
    missing = [k for k, init in enumerate(config.init) if _is_missing(init.folder)]
    try:
        stored = _shapes_of(open_model(_BUNDLED).tensors)
        for number in missing:
            _check_fit(own, stored, config.init[number], number)
    except UsageError:
        return ""
    changes = " ".join(f"init.{number}.folder={_BUNDLED}" for number in missing)
    return f". To start from the bundled model instead, add to your command: {changes}"


def _shapes_of(state: Mapping[str, Tensor | StoredTensor]) -> Shapes:
    """Returns the shapes of tensors in memory or in files."""
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
    """Copies the parts of a stored model, or a share of them, into a model tensor by tensor."""
    own = model.state_dict()
    names = _check_fit(_shapes_of(own), _shapes_of(stored), init, number)
    with torch.no_grad():
        for name in names:
            value = read(stored[_source(name, init)])
            if init.share < 1:
                value = torch.lerp(own[name], value.to(own[name]), init.share)
            own[name].copy_(value)


def _check_fit(own: Shapes, stored: Shapes, init: InitConfig, number: int) -> list[str]:
    """Returns the names of the weights to copy; all of them must exist and have the same shape."""
    names = [n for n in own if not init.parts or any(is_under(n, part) for part in init.parts)]
    if not names:
        raise UsageError(
            f"init.{number}.parts {list(init.parts)} name no part of the model; "
            f"its parts are {', '.join(_parts_of(own))}"
        )
    for prefix in init.sources:
        if not any(is_under(name, prefix) for name in own):
            raise UsageError(
                f"init.{number}.sources: {prefix!r} names no part of the model; "
                f"its parts are {', '.join(_parts_of(own))}"
            )
    misfits = [name for name in names if stored.get(_source(name, init)) != own[name]]
    if not misfits:
        return names
    source = _source(misfits[0], init)
    shape = stored.get(source)
    place = "there" if source == misfits[0] else f"there ({source})"
    found = f"missing {place}" if shape is None else f"{list(shape)} {place}"
    parts = list(dict.fromkeys(init.parts)) or _parts_of(own)
    bad = [part for part in parts if any(is_under(name, part) for name in misfits)]
    fitting = [part for part in parts if part not in bad]
    advice = (
        f"load the parts that fit, and train the others from scratch: "
        f'"init.{number}.parts=[{", ".join(fitting)}]"'
        if fitting
        else "no part of it fits: start from another model, or from scratch (init=[])"
    )
    raise UsageError(
        f"weights of {init.folder} do not fit: {misfits[0]} is {list(own[misfits[0]])} in this run "
        f"and {found}; {len(misfits)} weights of {', '.join(bad)} differ. If these sizes are "
        f"intended, {advice}"
    )


def _source(name: str, init: InitConfig) -> str:
    """Returns the name under which the stored model keeps a weight of this run."""
    prefix = max((one for one in init.sources if is_under(name, one)), key=len, default="")
    return init.sources[prefix] + name.removeprefix(prefix) if prefix else name


def _parts_of(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name in names))
