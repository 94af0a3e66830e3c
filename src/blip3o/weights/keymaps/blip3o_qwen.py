"""Weights of the released BLIP3-o 4B and 8B models (Qwen2.5-VL backbone).

    published                                       ours
    visual.*                                        backbone.visual.*
    model.embed_tokens.*, model.layers.*, norm      backbone.decoder.*
    lm_head.weight (8B only)                        backbone.lm_head.weight
    model.latent_queries [1, Q, D]                  query_tokens.weight [Q, D]
    model.dit.model.*                               dit.*
    model.gen_vision_tower.vision_tower.model.*     image_encoder.tower.* (not in every checkpoint)

The names are those that transformers 4.51 writes. Reference: parity manifests `blip3o_qwen_*`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.backbones.vision import VisionTowerConfig
from blip3o.models.unified import UnifiedModel
from blip3o.weights.keymaps.prefixes import PrefixMap
from blip3o.weights.strict import require_fit, shapes_of

INFERENCE_PARTS = ("backbone", "query_tokens", "dit")
"""Parts of a model whose weights are in every checkpoint of the family."""

TRAINING_PARTS = (*INFERENCE_PARTS, "image_encoder")
"""Parts whose weights are in a checkpoint that a training run saved."""

NAMES = PrefixMap(
    (
        ("visual.", "backbone.visual."),
        ("model.embed_tokens.", "backbone.decoder.embed_tokens."),
        ("model.layers.", "backbone.decoder.layers."),
        ("model.norm.", "backbone.decoder.norm."),
        ("lm_head.", "backbone.lm_head."),
        ("model.latent_queries", "query_tokens.weight"),
        ("model.dit.model.", "dit."),
        ("model.gen_vision_tower.vision_tower.model.", "image_encoder.tower."),
    )
)

QUERIES, HEAD, EMBEDDING = "query_tokens.weight", "lm_head.weight", "model.embed_tokens.weight"
_STRAYS = ("model.vae.",)  # an auto-encoder that early revisions registered and never used

_DECODER_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "image_token_id": "image_token_id",
    "tie_word_embeddings": "tie_word_embeddings",
    "rms_norm_eps": "norm_eps",
    "max_position_embeddings": "max_positions",
    "rope_theta": "rope_theta",
}
_VISION_FIELDS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "depth": "num_layers",
    "num_heads": "num_heads",
    "patch_size": "patch_px",
    "spatial_merge_size": "merge",
    "temporal_patch_size": "num_frames",
    "window_size": "window_px",
}


def backbone_config(published: Mapping[str, Any]) -> Qwen2_5VLBackboneConfig:
    """Returns the backbone's config out of a published config.json.

    Args:
        published: the file's content: flat text fields, `rope_scaling` and `vision_config`.

    Raises:
        UsageError: if a field is missing or describes no model.
    """
    try:
        vision = published["vision_config"]
        tower = {ours: vision[name] for name, ours in _VISION_FIELDS.items() if name in vision}
        if "fullatt_block_indexes" in vision:
            tower["full_attention_layers"] = tuple(vision["fullatt_block_indexes"])
        return Qwen2_5VLBackboneConfig(
            **{ours: published[name] for name, ours in _DECODER_FIELDS.items()},
            rotary_sections=tuple(published["rope_scaling"]["mrope_section"]),
            vision=VisionTowerConfig(**tower),
        )
    except KeyError as error:
        raise UsageError(f"config.json of the published model lacks {error}") from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UsageError(f"config.json of the published model is unfit: {error}") from error


def published_backbone(config: Qwen2_5VLBackboneConfig) -> dict[str, Any]:
    """Returns the fields of a published config.json that `backbone_config` reads back."""
    vision = {name: getattr(config.vision, ours) for name, ours in _VISION_FIELDS.items()}
    return {
        **{name: getattr(config, ours) for name, ours in _DECODER_FIELDS.items()},
        "rope_scaling": {
            "type": "default",
            "rope_type": "default",
            "mrope_section": list(config.rotary_sections),
        },
        "vision_config": {
            **vision,
            "out_hidden_size": config.hidden_size,
            "fullatt_block_indexes": list(config.vision.full_attention_layers),
        },
    }


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns weights under their published names and in their published shapes.

    Args:
        state: weights under our names; parts that no checkpoint of the family holds are left out.
    """
    named = {NAMES.published(name): tensor for name, tensor in state.items()}
    if QUERIES in state:
        named[NAMES.published(QUERIES)] = state[QUERIES].unsqueeze(0)
    return {name: tensor for name, tensor in named.items() if name is not None}


def load_published(
    model: UnifiedModel,
    state: Mapping[str, Tensor],
    where: str,
    parts: Sequence[str] = INFERENCE_PARTS,
) -> None:
    """Fills parts of a model with published weights.

    A model with tied embeddings takes a checkpoint with a vocabulary head only if that head is the
    embedding table.

    Args:
        model: a model of the checkpoint's sizes.
        state: the whole checkpoint; weights of other parts of the family are passed over.
        where: where it came from, for the message.
        parts: the parts to fill; see `TRAINING_PARTS`.

    Raises:
        UsageError: if a weight of these parts is missing, unknown or of another shape; it lists
            all of them by their published names.
    """
    own = {k: v for k, v in model.state_dict().items() if k.partition(".")[0] in parts}
    given = {name: tensor for name, tensor in state.items() if is_asked(name, parts)}
    also = []
    if model.backbone.lm_head is None and "backbone" in parts:
        head, table = given.pop(HEAD, None), given.get(EMBEDDING)
        if head is not None and (table is None or not torch.equal(head, table)):
            also = [f"{HEAD} is not {EMBEDDING}, although the embeddings are tied"]
    expected = to_published(own)
    require_fit(shapes_of(expected), shapes_of(given), where, also)
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(given[name])


def is_asked(published: str, parts: Sequence[str]) -> bool:
    """Returns whether a weight is to be loaded or refused, and not passed over.

    Args:
        published: its published name.
        parts: the parts to fill; see `TRAINING_PARTS`.
    """
    ours = NAMES.ours(published)
    if ours is None:
        return not published.startswith(_STRAYS)
    return ours.partition(".")[0] in parts
