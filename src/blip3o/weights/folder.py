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
    with torch.device("meta"):
        model = config.build()
    state: dict[str, Tensor] = {}
    for part in ("", *_PARTS):
        file = folder / part / "model.safetensors" if part else folder / "model.safetensors"
        prefix = f"{part}." if part else ""
        state |= {prefix + key: value for key, value in _read_tensors(file).items()}
    _check_keys(model, state, folder)
    model = model.to_empty(device="cpu")
    _reset_derived_buffers(model, config)
    model.load_state_dict(state, strict=True)
    model = model.to(device=device, dtype=dtype).eval()
    return LoadedModel(model, Tokenizer.load(folder), folder)


def _reset_derived_buffers(model: nn.Module, config: UnifiedModelConfig) -> None:
    """Fills buffers that are computed and not stored (rotary tables, position ids)."""
    fresh = dict(config.build().named_buffers())
    stored = set(model.state_dict())
    for name, buffer in model.named_buffers():
        if name not in stored:
            buffer.copy_(fresh[name])


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


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise UsageError(f"{file} is missing; the model folder is incomplete")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file} is damaged and cannot be read: {error}") from error


def _check_keys(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = sorted(expected.keys() - state.keys())
    extra = sorted(state.keys() - expected.keys())
    misshapen = [
        f"{name} {list(state[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    problems = [
        f"{what}: {', '.join(names)}"
        for what, names in (("missing", missing), ("extra", extra), ("wrong shape", misshapen))
        if names
    ]
    if problems:
        raise UsageError(f"weights in {folder} do not fit their config; {'; '.join(problems)}")


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
