"""Model folders: `config.json`, safetensors, the tokenizer and a model card.

    config.json                        UnifiedModelConfig
    model.safetensors                  backbone, generator, feature normalizer
    image_encoder/model.safetensors
    image_decoder/model.safetensors
    tokenizer.json

Large files are split into shards with an index (see `shards`). Folders of the released models are
read unchanged (see `published`). Loading is strict: one error names all missing, unexpected and
misshapen tensors.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from blip3o.core.config import from_dict, to_dict
from blip3o.core.errors import UsageError
from blip3o.core.files import write_atomic
from blip3o.models.quantize import is_quantized
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.nn.quantized import Quantization
from blip3o.text.tokenizer import FILE_NAME as TOKENIZER_FILE
from blip3o.text.tokenizer import Tokenizer
from blip3o.weights.keymaps.spellings import OWN, upgraded_config
from blip3o.weights.layouts import is_published, is_siglip2_sana
from blip3o.weights.names import BUNDLED, full_name, is_there, unknown_model
from blip3o.weights.shards import (
    PICKLE_ENDINGS,
    Weight,
    has_tensors,
    open_tensors,
    other_form,
    under,
    write_tensors,
)
from blip3o.weights.small_files import read_json, require_ordinary
from blip3o.weights.stored import StoredModel, check_tokenizer, sketch
from blip3o.weights.strict import Problems, require_fit
from blip3o.weights.wrappers import unwrapped

_PARTS = ("image_encoder", "image_decoder")


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model and the tokenizer it was trained with.

    Args:
        model: the model, in evaluation mode.
        tokenizer: converts text to token ids.
        folder: the folder of both.
    """

    model: UnifiedModel
    tokenizer: Tokenizer
    folder: Path


def resolve_model_folder(name: str | Path) -> Path:
    """Returns the folder of a model; downloads nothing.

    Args:
        name: "pocket" or the path of a model folder.

    Raises:
        UsageError: if there is no such model.
    """
    if str(name) in BUNDLED:
        folder = BUNDLED[str(name)]
        if not (folder / "config.json").exists():
            raise UsageError(f"the bundled model {name!r} is not in this installation ({folder})")
        return folder
    folder = Path(full_name(name))
    if not is_there(folder) and folder.suffix not in PICKLE_ENDINGS:
        raise unknown_model(str(name))
    if (folder / "config.json").is_file():
        return folder
    if (folder / "model" / "config.json").is_file():  # a run folder holds its model in model/
        return folder / "model"
    if folder.suffix in PICKLE_ENDINGS:
        raise UsageError(
            f"{folder} is a pickle, which can run any program and is never opened: give the folder "
            "with the safetensors files of the model"
        )
    advice = other_form(folder)
    hint = f"; {advice}" if advice else ""
    raise UsageError(f"{folder} is not a model folder: it has no config.json{hint}")


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
        dtype: dtype of the stored weights; the maps of feature normalizers always stay float32.
        card: text of the model card, written as README.md.

    Raises:
        UsageError: if the model is quantized; folders cannot hold quantized weights.
    """
    if is_quantized(model):
        raise UsageError("a quantized model cannot be saved: load it without quantization first")
    state = {name: _stored(name, tensor, dtype) for name, tensor in model.state_dict().items()}
    write_folder(folder, model.config, state, tokenizer)
    if card is not None:
        write_atomic(folder / "README.md", card)


def write_folder(
    folder: Path,
    config: UnifiedModelConfig,
    tensors: Mapping[str, Weight],
    tokenizer: Tokenizer,
) -> None:
    """Writes a model folder without a card; tensors keep their dtypes.

    Args:
        folder: created if missing; config.json is written last.
        config: config of the model.
        tensors: the whole state dict of the model.
        tokenizer: tokenizer of the model.
    """
    rest = {name: t for name, t in tensors.items() if name.partition(".")[0] not in _PARTS}
    write_tensors(folder, rest)
    for part in _PARTS:
        if part not in config.absent_parts:
            write_tensors(folder / part, under(f"{part}.", tensors))
    tokenizer.save(folder)
    write_atomic(folder / "config.json", json.dumps(to_dict(config), indent=2) + "\n")


def load_model(
    name: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    quantize: Quantization | None = None,
    placement: Mapping[str, torch.device] | None = None,
    overrides: Sequence[str] = (),
) -> LoadedModel:
    """Returns the model of a folder, ours or a released one; needs little more memory than it.

    Args:
        name: "pocket" or the path of a model folder.
        device: device of the weights.
        dtype: dtype of the weights in memory.
        quantize: "int8" or "int4" for the backbone's matrices.
        placement: devices of components that use another device, by name.
        overrides: settings to change; see `StoredModel.configured`.

    Raises:
        UsageError: if the folder is missing, incomplete or damaged (the message names the file and
            the keys), or if an override does not fit it.
    """
    stored = open_model(name).configured(overrides)
    model = stored.build(torch.device(device), dtype, quantize=quantize, placement=placement)
    return LoadedModel(model, stored.tokenizer, stored.folder)


def open_model(name: str | Path, *, allow_pickle: bool = False) -> StoredModel:
    """Returns the model of a folder, checked for completeness; no weight is read yet.

    Args:
        name: "pocket" or the path of a model folder, ours or a released one.
        allow_pickle: whether to read a released model's weights from pickles if it has no others.

    Raises:
        UsageError: as for `load_model`.
    """
    folder = resolve_model_folder(name)
    file = folder / "config.json"
    data = read_json(file)
    if is_siglip2_sana(folder):
        raise UsageError(
            f"{folder} holds SigLIP2 and SANA but no language model: load_siglip2_sana reads both, "
            "and a run may start from them (init, docs/weights.md)"
        )
    if is_published(data):
        from blip3o.weights.published import open_published

        return open_published(folder, data, allow_pickle=allow_pickle)
    try:
        config = from_dict(UnifiedModelConfig, upgraded_config(data))
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error
    tensors: dict[str, Weight] = {}
    problems = Problems()
    for part in ("", *_PARTS):
        if part not in config.absent_parts or has_tensors(folder / part, "model"):
            prefix = f"{part}." if part else ""
            with problems.collect():
                tensors |= {prefix + key: t for key, t in open_tensors(folder / part).items()}
    with problems.collect():
        require_ordinary(folder / TOKENIZER_FILE)
        tokenizer = Tokenizer.load(folder)
        check_tokenizer(tokenizer, config, str(folder / TOKENIZER_FILE))
    problems.refuse()
    tensors = OWN.respelled(unwrapped(tensors, folder), str(folder))
    skeleton = sketch(config, file, len(tensors))
    require_fit(skeleton.state_dict(), tensors, str(folder))
    return StoredModel(config, tensors, tokenizer, folder)


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point() or "normalizer." in name:
        return tensor.detach().cpu().contiguous()
    return tensor.detach().to("cpu", dtype).contiguous()
