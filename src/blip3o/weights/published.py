"""Folders of the released BLIP3-o 4B and 8B models, and of their training runs.

    config.json                        fields of Qwen2.5-VL, and the settings of the added parts
    model-0000N-of-0000M.safetensors   shards and their index; names as in `keymaps.blip3o_qwen`
    diffusion-decoder/                 unet/, vae/, scheduler/ as diffusers writes them
    tokenizer.json

The sizes of the generator and of the EVA-CLIP tower are constants of the release. If one of our
models has other sizes, its config.json contains them under the additional key `blip3o`, which the
original program ignores. Parts that a folder does not contain (the tower, the decoder) are absent
parts of the model.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path

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
    FAMILY,
    NAMES,
    TRAINING_PARTS,
    backbone_config,
    published_backbone,
)
from blip3o.weights.keymaps.hf_config import text_fields
from blip3o.weights.keymaps.published import HEAD, plain
from blip3o.weights.keymaps.spellings import upgraded_config
from blip3o.weights.pickles import has_pickles, read_pickles
from blip3o.weights.shards import Weight, has_tensors, open_tensors, under, write_tensors
from blip3o.weights.small_files import require_ordinary
from blip3o.weights.stored import StoredModel, check_tokenizer, sketch
from blip3o.weights.strict import Problems, TensorT, require_fit

MODEL_TYPES = ("blip3o_qwen", "blip3o_qwen_inference")
ARCHITECTURES = ("blip3oQwenForCausalLM", "blip3oQwenForInferenceLM")
TOWER = "eva-clip-E-14-plus"
DECODER = "diffusion-decoder"

_POOLING = re.compile(r"(?=.*early).*_([1-9]\d*)")
"""A name of early pooling; the number at its end is the side of a window, as in the original."""

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


def published_config(
    data: Mapping[str, object],
    decoder: Mapping[str, object] | None = None,
    absent_parts: tuple[str, ...] = (),
) -> UnifiedModelConfig:
    """Returns the model's config from a published config.json.

    Args:
        data: content of the file.
        decoder: fields of the image decoder's config; None for those of the released one.
        absent_parts: see `UnifiedModelConfig`.

    Raises:
        UsageError: if a field is missing, or describes a model of another family.
    """
    own = upgraded_config(data.get(_OWN, {}), text_fields(data).get("n_query"))
    if not isinstance(own, Mapping) or not own.keys() <= set(_OWN_FIELDS):
        raise UsageError(f"{_OWN} may hold {', '.join(_OWN_FIELDS)}, got {own!r}")
    generator = own.get("generator")
    if isinstance(generator, Mapping):  # the published field says it
        own = {
            **own,
            "generator": {**generator, "num_query_tokens": text_fields(data).get("n_query")},
        }
    return from_dict(UnifiedModelConfig, {**_constants(data, decoder, absent_parts), **own})


def open_published(
    folder: Path, data: Mapping[str, object], *, allow_pickle: bool = False
) -> StoredModel:
    """Returns the model of a published folder, checked for completeness; no weight is read yet.

    Args:
        folder: the folder.
        data: content of its config.json.
        allow_pickle: whether to read `pytorch_model.bin` if there are no others; see `pickles`.

    Raises:
        UsageError: if the folder contains another model, or is incomplete or damaged; one line
            names every file or weight.
    """
    file = folder / "config.json"
    _require_family(data, file)
    from_pickles = allow_pickle and not has_tensors(folder, "model") and has_pickles(folder)
    has_decoder = (folder / DECODER).is_dir()
    given: Mapping[str, Weight] = {}
    decoder: dict[str, object] | None = None
    problems = Problems()
    with problems.collect():
        given = read_pickles(folder) if from_pickles else open_tensors(folder)
    with problems.collect():
        decoder = published_decoder.read_config(folder / DECODER) if has_decoder else None
    with problems.collect():
        require_ordinary(folder / TOKENIZER_FILE)
        tokenizer = Tokenizer.load(folder)
    problems.refuse()
    given = plain(given, folder, str(folder))
    has_tower = any((NAMES.ours(name) or "").startswith("image_encoder.") for name in given)
    absent = (() if has_tower else ("image_encoder",)) + (() if has_decoder else ("image_decoder",))
    try:
        if "tie_word_embeddings" not in text_fields(data):  # missing, or contradictory
            data = {**_without_ties(data), "tie_word_embeddings": HEAD not in given}
        config = published_config(data, decoder, absent)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error
    decoder_tensors: dict[str, Weight] = {}
    if has_decoder:
        assert isinstance(config.image_decoder, SdxlDecoderConfig)
        decoder_tensors = published_decoder.open_weights(folder / DECODER, config.image_decoder)
    skeleton = sketch(config, file, len(given) + len(decoder_tensors))
    expected = FAMILY.to_published(skeleton.state_dict())
    if has_decoder:
        expected |= _in_decoder(skeleton.image_decoder.state_dict())
    is_tied = skeleton.backbone.lm_head is None
    found, complaints = FAMILY.select(given, TRAINING_PARTS, is_tied=is_tied)
    require_fit(expected, found | _in_decoder(decoder_tensors), str(folder), complaints)
    check_tokenizer(tokenizer, config, str(folder / TOKENIZER_FILE))
    tensors = FAMILY.to_ours(found)
    for name, tensor in decoder_tensors.items():
        whole = tensor.contiguous() if isinstance(tensor, Tensor) else tensor
        tensors[f"image_decoder.{name}"] = whole
    return StoredModel(config, tensors, tokenizer, folder)


def write_published(model: StoredModel, folder: Path) -> None:
    """Writes a model as a published folder; the weights keep their dtypes.

    Args:
        model: a model of the family.
        folder: created if missing.

    Raises:
        UsageError: if the published layout cannot hold the model; the message gives the reason.
    """
    config = model.config
    skeleton = sketch(config, model.folder / "config.json", len(model.tensors))
    data = _config_data(config, skeleton)
    write_tensors(folder, FAMILY.to_published(model.tensors))
    if "image_decoder" not in config.absent_parts:
        tensors = under("image_decoder.", model.tensors)
        assert isinstance(skeleton.image_decoder, SdxlDecoder)
        published_decoder.write(folder / DECODER, skeleton.image_decoder, tensors)
    model.tokenizer.save(folder)
    text = json.dumps(data, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _require_family(data: Mapping[str, object], file: Path) -> None:
    architectures = data.get("architectures")
    named = architectures if isinstance(architectures, list) else []
    if data.get("model_type") in MODEL_TYPES or any(name in ARCHITECTURES for name in named):
        return
    raise UsageError(
        f"{file} is of another model: model_type {data.get('model_type')!r}, architectures "
        f"{architectures!r}; the supported released folders have model_type "
        f"{' or '.join(MODEL_TYPES)}"
    )


def _constants(
    data: Mapping[str, object], decoder: Mapping[str, object] | None, absent_parts: tuple[str, ...]
) -> dict[str, object]:
    """Returns our config as plain data: fields of the file, and constants of the release."""
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
    queries = {"num_query_tokens": data["n_query"]}
    return {
        "backbone": to_dict(backbone),
        "image_encoder": to_dict(encoder),
        "generator": to_dict(QueryDiTConfig.published()) | queries,
        "image_decoder": {**(decoder or published_decoder.released()), "grid": encoder.grid},
        "chat": to_dict(ChatConfig()),
        "sampling": to_dict(SamplingConfig(truncate_timestep=True)),
        "question_images": to_dict(ImageFitConfig(mode="aspect")),
        "absent_parts": list(absent_parts),
    }


def _config_data(config: UnifiedModelConfig, skeleton: UnifiedModel) -> dict[str, object]:
    """Returns the published config.json of one of our models."""
    kinds = {part: getattr(config, part).kind for part in _FAMILY}
    others = [f"{part} {kind}" for part, kind in kinds.items() if kind != _FAMILY[part]]
    if config.normalizer.num_components is not None:
        others.append("normalized features")
    if isinstance(config.generator, QueryDiTConfig) and config.generator.reads != "queries":
        others.append(f"a generator that reads {config.generator.reads}")
    if others:
        raise UsageError(f"the published layout cannot hold this model: {', '.join(others)}")
    assert isinstance(config.backbone, Qwen2_5VLBackboneConfig)
    assert isinstance(config.image_encoder, EvaClipEncoderConfig)
    assert isinstance(config.generator, QueryDiTConfig)
    data: dict[str, object] = {
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
    constants, wanted = _constants(data, decoder, config.absent_parts), to_dict(config)
    own = {field: wanted[field] for field in _OWN_FIELDS if wanted[field] != constants[field]}
    return data | ({_OWN: own} if own else {})


def _without_ties(data: Mapping[str, object]) -> dict[str, object]:
    """Returns a config.json without its settings of tied embeddings."""
    text = data.get("text_config")
    inner = {"text_config": _without_ties(text)} if isinstance(text, Mapping) else {}
    return {k: v for k, v in data.items() if k != "tie_word_embeddings"} | inner


def _in_decoder(tensors: Mapping[str, TensorT]) -> dict[str, TensorT]:
    return {f"{DECODER}/{name}": tensor for name, tensor in tensors.items()}
