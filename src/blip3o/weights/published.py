"""Folders of the released BLIP3-o 4B and 8B models, and of their training runs.

    config.json                        fields of Qwen2.5-VL, and the names of what was added
    model-0000N-of-0000M.safetensors   shards and their index; names as in `keymaps.blip3o_qwen`
    diffusion-decoder/                 unet/, vae/, scheduler/ as diffusers writes them
    tokenizer.json

The sizes of the generator and of the EVA-CLIP tower are constants of the release. Where a model of
ours differs from them, its config.json also has a key `blip3o` with its own; the original ignores
it.
What a folder does not hold (the tower, the decoder) becomes an absent part of the model.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip3o.core.config import from_dict, to_dict
from blip3o.core.errors import UsageError
from blip3o.imaging.fit import ImageFitConfig
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.decoders.sdxl import SdxlDecoder, SdxlDecoderConfig
from blip3o.models.encoders.eva_clip import EvaClipEncoderConfig
from blip3o.models.generators.query_dit import QueryDiTConfig
from blip3o.models.unified import SamplingConfig, UnifiedModel, UnifiedModelConfig
from blip3o.text.chat import ChatConfig
from blip3o.text.tokenizer import FILE_NAME as TOKENIZER_FILE
from blip3o.text.tokenizer import Tokenizer
from blip3o.weights import published_decoder
from blip3o.weights.keymaps.blip3o_qwen import (
    NAMES,
    TRAINING_PARTS,
    backbone_config,
    is_asked,
    plain,
    published_backbone,
    to_published,
)
from blip3o.weights.keymaps.hf_config import text_fields
from blip3o.weights.keymaps.older import upgraded_config
from blip3o.weights.keymaps.published import EMBEDDING, HEAD, QUERIES
from blip3o.weights.pickles import has_pickles, read_pickles
from blip3o.weights.shards import StoredTensor, has_tensors, open_tensors, read, write_tensors
from blip3o.weights.small_files import require_ordinary
from blip3o.weights.stored import StoredModel, check_tokenizer, sketch
from blip3o.weights.strict import Problems, require_fit

MODEL_TYPES = ("blip3o_qwen", "blip3o_qwen_inference")
ARCHITECTURES = ("blip3oQwenForCausalLM", "blip3oQwenForInferenceLM")
TOWER = "eva-clip-E-14-plus"
DECODER = "diffusion-decoder"

_POOLING = re.compile(r"(?=.*early).*_([1-9]\d*)")
"""Early pooling of any name: the number at its end is the side of a window, as in the original."""

_OWN = "blip3o"
_OWN_FIELDS = (
    "image_encoder",
    "generator",
    "image_decoder",
    "chat",
    "sampling",
    "question_images",
)
_FAMILY = {
    "backbone": "qwen2_5_vl",
    "image_encoder": "eva_clip",
    "generator": "query_dit",
    "image_decoder": "sdxl",
}


def is_published(data: Any) -> bool:  # noqa: ANN401  (whatever the file holds)
    """Returns whether a config.json is one that transformers wrote, of whatever model."""
    return isinstance(data, Mapping) and bool({"model_type", "architectures"} & data.keys())


def published_config(
    data: Mapping[str, Any],
    decoder: Mapping[str, Any] | None = None,
    absent_parts: tuple[str, ...] = (),
) -> UnifiedModelConfig:
    """Returns the model's config out of a published config.json.

    Args:
        data: the file's content.
        decoder: fields of the image decoder's config; those of the released one if None.
        absent_parts: see `UnifiedModelConfig`.

    Raises:
        UsageError: if a field is missing or describes no model of the family.
    """
    own = upgraded_config(data.get(_OWN, {}), data.get("n_query"))
    if not isinstance(own, Mapping) or not own.keys() <= set(_OWN_FIELDS):
        raise UsageError(f"{_OWN} may hold {', '.join(_OWN_FIELDS)}, got {own!r}")
    return from_dict(UnifiedModelConfig, {**_constants(data, decoder, absent_parts), **own})


def open_published(
    folder: Path, data: Mapping[str, Any], *, allow_pickle: bool = False
) -> StoredModel:
    """Returns what a published folder holds, found complete but not read.

    Args:
        folder: the folder.
        data: the content of its config.json.
        allow_pickle: read `pytorch_model.bin` if there are no safetensors; see `pickles`.

    Raises:
        UsageError: if it is of another model, incomplete or damaged; one line that names every
            file or weight.
    """
    file = folder / "config.json"
    _require_family(data, file)
    from_pickles = allow_pickle and not has_tensors(folder, "model") and has_pickles(folder)
    has_decoder = (folder / DECODER).is_dir()
    given: Mapping[str, Tensor | StoredTensor] = {}
    decoder: dict[str, Any] | None = None
    problems = Problems()
    with problems.collect():
        given = read_pickles(folder) if from_pickles else open_tensors(folder)
    with problems.collect():
        decoder = published_decoder.read_config(folder / DECODER) if has_decoder else None
    with problems.collect():
        require_ordinary(folder / TOKENIZER_FILE)
        tokenizer = Tokenizer.load(folder)
    problems.refuse()
    given = plain(given, folder)
    has_tower = any((NAMES.ours(name) or "").startswith("image_encoder.") for name in given)
    absent = (() if has_tower else ("image_encoder",)) + (() if has_decoder else ("image_decoder",))
    try:
        if "tie_word_embeddings" not in text_fields(data):  # left out, or said both ways
            data = {**_without_ties(data), "tie_word_embeddings": HEAD not in given}
        config = published_config(data, decoder, absent)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error
    decoder_tensors: dict[str, Tensor | StoredTensor] = {}
    if has_decoder:
        assert isinstance(config.image_decoder, SdxlDecoderConfig)
        decoder_tensors = published_decoder.open_weights(folder / DECODER, config.image_decoder)
    skeleton = sketch(config, file, len(given) + len(decoder_tensors))
    expected: dict[str, Any] = dict(to_published(skeleton.state_dict()))
    found = {name: t for name, t in given.items() if is_asked(name, TRAINING_PARTS)}
    complaints = _drop_tied_head(found) if skeleton.backbone.lm_head is None else []
    if has_decoder:
        expected |= _in_decoder(skeleton.image_decoder.state_dict())
    found_all = found | _in_decoder(decoder_tensors)
    require_fit(expected, found_all, str(folder), complaints)
    check_tokenizer(tokenizer, config, str(folder / "tokenizer.json"))
    tensors = {
        f"image_decoder.{name}": tensor.contiguous() if isinstance(tensor, Tensor) else tensor
        for name, tensor in decoder_tensors.items()
    }
    return StoredModel(config, _to_ours(found) | tensors, tokenizer, folder)


def write_published(model: StoredModel, folder: Path) -> None:
    """Writes a model as a published folder; the weights keep their types.

    Args:
        model: one of the family.
        folder: created if missing.

    Raises:
        UsageError: if the published layout cannot hold the model; it says what.
    """
    config = model.config
    skeleton = sketch(config, model.folder / "config.json", len(model.tensors))
    data = _config_data(config, skeleton)
    names = {NAMES.published(name): tensor for name, tensor in model.tensors.items()}
    queries = model.tensors[QUERIES]
    names[NAMES.published(QUERIES)] = _reshaped(queries, (1, *queries.shape))
    write_tensors(folder, {name: tensor for name, tensor in names.items() if name is not None})
    if "image_decoder" not in config.absent_parts:
        front = "image_decoder."
        tensors = {
            k.removeprefix(front): t for k, t in model.tensors.items() if k.startswith(front)
        }
        assert isinstance(skeleton.image_decoder, SdxlDecoder)
        published_decoder.write(folder / DECODER, skeleton.image_decoder, tensors)
    model.tokenizer.save(folder)
    text = json.dumps(data, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _require_family(data: Mapping[str, Any], file: Path) -> None:
    architectures = data.get("architectures")
    named = architectures if isinstance(architectures, list) else []
    if data.get("model_type") in MODEL_TYPES or any(name in ARCHITECTURES for name in named):
        return
    raise UsageError(
        f"{file} is of another model: model_type {data.get('model_type')!r}, architectures "
        f"{architectures!r}; the released folders that can be read have model_type "
        f"{' or '.join(MODEL_TYPES)}"
    )


def _constants(
    data: Mapping[str, Any], decoder: Mapping[str, Any] | None, absent_parts: tuple[str, ...]
) -> dict[str, Any]:
    """Returns our config as plain data: what the file says, and else the release's constants."""
    backbone, data = backbone_config(data), text_fields(data)
    if data.get("gen_vision_tower") != TOWER:
        raise UsageError(
            f"gen_vision_tower must be {TOWER!r}, got {data.get('gen_vision_tower')!r}"
        )
    pooling = _POOLING.fullmatch(str(data.get("gen_pooling")))
    if pooling is None:
        raise UsageError(f"gen_pooling must be early_pool2d_N, got {data.get('gen_pooling')!r}")
    if "n_query" not in data:
        raise UsageError("config.json of the published model lacks 'n_query'")
    try:
        encoder = dataclasses.replace(EvaClipEncoderConfig.published(), pool=int(pooling[1]))
    except ValueError as error:
        raise UsageError(f"gen_pooling: {error}") from error
    generator = dataclasses.replace(QueryDiTConfig.published(), num_query_tokens=data["n_query"])
    return {
        "backbone": to_dict(backbone),
        "image_encoder": to_dict(encoder),
        "generator": to_dict(generator),
        "image_decoder": {**(decoder or published_decoder.released()), "grid": encoder.grid},
        "chat": to_dict(ChatConfig()),
        "sampling": to_dict(SamplingConfig(truncate_timestep=True)),
        "question_images": to_dict(ImageFitConfig(mode="aspect")),
        "absent_parts": list(absent_parts),
    }


def _config_data(config: UnifiedModelConfig, skeleton: UnifiedModel) -> dict[str, Any]:
    """Returns the published config.json of a model of ours."""
    kinds = {part: getattr(config, part).kind for part in _FAMILY}
    others = [f"{part} {kind}" for part, kind in kinds.items() if kind != _FAMILY[part]]
    if config.normalizer.num_components is not None:
        others.append("normalized features")
    if others:
        raise UsageError(f"the published layout cannot hold this model: {', '.join(others)}")
    assert isinstance(config.backbone, Qwen2_5VLBackboneConfig)
    assert isinstance(config.image_encoder, EvaClipEncoderConfig)
    assert isinstance(config.generator, QueryDiTConfig)
    data: dict[str, Any] = {
        "architectures": [ARCHITECTURES[0]],
        "model_type": MODEL_TYPES[0],
        **published_backbone(config.backbone),
        "gen_vision_tower": TOWER,
        "gen_hidden_size": config.image_encoder.num_channels,
        "gen_pooling": f"early_pool2d_{config.image_encoder.pool}",
        "n_query": config.generator.num_query_tokens,
    }
    decoder = None
    if "image_decoder" not in config.absent_parts:
        assert isinstance(skeleton.image_decoder, SdxlDecoder)
        decoder = published_decoder.fields(*published_decoder.parts(skeleton.image_decoder))
    plain, asked = _constants(data, decoder, config.absent_parts), to_dict(config)
    own = {field: asked[field] for field in _OWN_FIELDS if asked[field] != plain[field]}
    return data | ({_OWN: own} if own else {})


def _to_ours(found: Mapping[str, Tensor | StoredTensor]) -> dict[str, Tensor | StoredTensor]:
    ours: dict[str, Tensor | StoredTensor] = {}
    for published, tensor in found.items():
        name = NAMES.ours(published)
        if name == QUERIES:
            tensor = _reshaped(tensor, tuple(tensor.shape[1:]))
        if name is not None:
            ours[name] = tensor
    return ours


def _drop_tied_head(found: dict[str, Any]) -> list[str]:
    """Takes a stored vocabulary head out if it is the embedding table; else returns a complaint."""
    head, table = found.pop(HEAD, None), found.get(EMBEDDING)
    if head is None or (table is not None and torch.equal(read(head), read(table))):
        return []
    return [f"{HEAD} is not {EMBEDDING}, although the embeddings are tied"]


def _without_ties(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns config.json without what it says of tied embeddings."""
    text = data.get("text_config")
    inner = {"text_config": _without_ties(text)} if isinstance(text, Mapping) else {}
    return {k: v for k, v in data.items() if k != "tie_word_embeddings"} | inner


def _in_decoder(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{DECODER}/{name}": tensor for name, tensor in tensors.items()}


def _reshaped(tensor: Tensor | StoredTensor, shape: tuple[int, ...]) -> Tensor | StoredTensor:
    if isinstance(tensor, StoredTensor):
        return dataclasses.replace(tensor, shape=shape)
    return tensor.reshape(shape)
