"""Model folders: `config.json`, safetensors for each part, the tokenizer and a model card.

    config.json                        UnifiedModelConfig
    model.safetensors                  backbone, query tokens, DiT, feature normalizer
    image_encoder/model.safetensors
    image_decoder/model.safetensors
    tokenizer.json

Loading is strict both ways: a missing, extra or misshapen tensor is an error that lists them all.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from blip3o.core.config import from_dict, to_dict
from blip3o.core.errors import UsageError, unknown_name
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.text.tokenizer import Tokenizer
from blip3o.weights.strict import require_fit, shapes_of

BUNDLED = {"pocket": Path(__file__).parent.parent / "pocket"}
"""Models that come with the package, by name."""

_PARTS = {"image_encoder": "image_encoder", "image_decoder": "image_decoder"}


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model and the tokenizer it was trained with.

    Args:
        model: in evaluation mode.
        tokenizer: turns text into its token ids.
        folder: where both came from.
    """

    model: UnifiedModel
    tokenizer: Tokenizer
    folder: Path


def resolve_model_folder(name: str | Path) -> Path:
    """Returns the folder of a model: a bundled name or a folder.

    Args:
        name: "pocket" or the path of a model folder.

    Raises:
        UsageError: if there is no such model; nothing is ever downloaded here.
    """
    if str(name) in BUNDLED:
        folder = BUNDLED[str(name)]
        if not (folder / "config.json").exists():
            raise UsageError(f"the bundled model {name!r} is not in this installation ({folder})")
        return folder
    folder = Path(name)
    if (folder / "config.json").is_file():
        return folder
    if (folder / "model" / "config.json").is_file():  # a run folder holds its model in model/
        return folder / "model"
    if folder.exists():
        raise UsageError(f"{folder} is not a model folder: it has no config.json")
    raise unknown_name("model", str(name), BUNDLED)


def save_model(
    model: UnifiedModel,
    tokenizer: Tokenizer,
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
    card: str | None = None,
) -> None:
    """Writes a complete model folder.

    Args:
        model: the model; its floating point weights are stored as `dtype`.
        tokenizer: its tokenizer.
        folder: created if missing; files of the same names are replaced one by one.
        dtype: type of the stored weights; feature normalizer maps always stay float32.
        card: text of the model card, written as README.md.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part, state in _split(model).items():
        stored = {name: _stored(name, tensor, dtype) for name, tensor in state.items()}
        target = folder / part if part else folder
        target.mkdir(exist_ok=True)
        scratch = target / "model.safetensors.tmp"
        save_file(stored, scratch)
        scratch.chmod(0o644)  # the library writes files that only their owner may read
        os.replace(scratch, target / "model.safetensors")
    tokenizer.save(folder)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    config = json.dumps(to_dict(model.config), indent=2) + "\n"
    (folder / "config.json").write_text(config, encoding="utf-8")


def load_model(
    name: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedModel:
    """Returns a model from a folder.

    Args:
        name: "pocket" or the path of a model folder.
        device: where the weights go.
        dtype: type of the weights in memory.

    Raises:
        UsageError: if the folder is missing, incomplete or damaged, naming the file and the keys.
    """
    folder = resolve_model_folder(name)
    config = _read_config(folder / "config.json")
    skeleton = _skeleton(config, folder)
    state: dict[str, Tensor] = {}
    for part in ("", *_PARTS):
        file = folder / part / "model.safetensors" if part else folder / "model.safetensors"
        prefix = f"{part}." if part else ""
        state |= {prefix + key: value for key, value in _read_tensors(file).items()}
    require_fit(shapes_of(skeleton.state_dict()), shapes_of(state), str(folder))
    tokenizer = Tokenizer.load(folder)
    _check_tokenizer(tokenizer, config, folder)
    with torch.random.fork_rng(devices=[]):  # loading a model moves nobody's random numbers
        model = config.build()
    model.load_state_dict(state, strict=True)
    _move(model, torch.device(device), dtype)
    return LoadedModel(model.eval(), tokenizer, folder)


def _skeleton(config: UnifiedModelConfig, folder: Path) -> UnifiedModel:
    """Returns the model without memory for its weights, to compare names and shapes with."""
    try:
        with torch.device("meta"):
            return config.build()
    except (ValueError, ArithmeticError, RuntimeError) as error:
        raise UsageError(f"{folder / 'config.json'} describes no model: {error}") from error


def _move(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Moves a model; buffers that are computed and not stored keep their type.

    Rotary frequencies in bf16 would turn far positions by up to a radian too much.
    """
    stored = model.state_dict().keys()
    derived = {name: buffer for name, buffer in model.named_buffers() if name not in stored}
    model.to(device=device, dtype=dtype)
    for name, buffer in derived.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, buffer.to(device))


def _split(model: UnifiedModel) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {"": {}, **{part: {} for part in _PARTS}}
    for name, tensor in model.state_dict().items():
        part, _, rest = name.partition(".")
        if part in _PARTS:
            parts[part][rest] = tensor
        else:
            parts[""][name] = tensor
    return parts


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point() or name.startswith("normalizer."):
        return tensor.detach().cpu().contiguous()
    return tensor.detach().to("cpu", dtype).contiguous()


def _read_config(file: Path) -> UnifiedModelConfig:
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error
    try:
        return from_dict(UnifiedModelConfig, data)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error


def _check_tokenizer(tokenizer: Tokenizer, config: UnifiedModelConfig, folder: Path) -> None:
    backbone = config.backbone
    if tokenizer.image_pad_id != backbone.image_token_id:
        raise UsageError(
            f"{folder / 'tokenizer.json'} is of another model: its image placeholder is token "
            f"{tokenizer.image_pad_id}, config.json says {backbone.image_token_id}"
        )
    if tokenizer.vocab_size > backbone.vocab_size:
        raise UsageError(
            f"{folder / 'tokenizer.json'} is of another model: it has {tokenizer.vocab_size} "
            f"tokens, config.json says {backbone.vocab_size}"
        )


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise UsageError(f"{file} is missing; the model folder is incomplete")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file} is damaged and cannot be read: {error}") from error


def describe_models() -> str:
    """Returns the bundled models, a line each: name, parameters, megabytes, folder."""
    lines = []
    for name, folder in BUNDLED.items():
        files = [folder / part / "model.safetensors" for part in ("", *_PARTS)]
        if all(file.is_file() for file in files):
            megabytes = sum(file.stat().st_size for file in files) / 1e6
            with torch.device("meta"):
                model = _read_config(folder / "config.json").build()
            millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
            lines.append(f"{name}  {millions:.1f} M parameters, {megabytes:.1f} MB, {folder}")
        else:
            lines.append(f"{name}  not in this installation")
    return "\n".join([*lines, "any folder written by training also works: --model RUN/model"])
