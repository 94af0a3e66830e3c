"""Weights of the released BLIP3-o 4B and 8B models (Qwen2.5-VL backbone).

    published                                       ours
    visual.*                                        backbone.visual.*
    model.embed_tokens.*, model.layers.*, norm      backbone.decoder.*
    lm_head.weight (8B only)                        backbone.lm_head.weight
    model.latent_queries [1, Q, D]                  generator.query_tokens.weight [Q, D]
    model.dit.model.*                               generator.dit.*
    model.gen_vision_tower.vision_tower.model.*     image_encoder.tower.* (not in every checkpoint)

The names are those that transformers 4.51 writes; `spellings` has those of newer ones.
Reference: parity manifests `blip3o_qwen_*`.
"""

from collections.abc import Mapping
from typing import Any

from blip3o.core.errors import UsageError
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.backbones.vision import VisionTowerConfig
from blip3o.weights.keymaps.hf_config import first_of, require_activation, rope_of, text_fields
from blip3o.weights.keymaps.prefixes import PrefixMap
from blip3o.weights.keymaps.published import PublishedFamily

INFERENCE_PARTS = ("backbone", "generator")
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
        ("model.latent_queries", "generator.query_tokens.weight"),
        ("model.dit.model.", "generator.dit."),
        ("model.gen_vision_tower.vision_tower.model.", "image_encoder.tower."),
    )
)

# Early revisions registered an auto-encoder that they never used.
_FAMILY = PublishedFamily(NAMES, INFERENCE_PARTS, strays=("model.vae.",))
to_published = _FAMILY.to_published
load_published = _FAMILY.load_published
plain = _FAMILY.plain
is_asked = _FAMILY.is_asked

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
}
_VISION_FIELDS = {
    ("hidden_size",): "hidden_size",
    ("intermediate_size",): "intermediate_size",
    ("depth", "num_hidden_layers"): "num_layers",
    ("num_heads", "num_attention_heads"): "num_heads",
    ("patch_size", "spatial_patch_size"): "patch_px",
    ("spatial_merge_size",): "merge",
    ("temporal_patch_size",): "num_frames",
    ("window_size",): "window_px",
}
"""Names that a field has or had, the one that is written first, and ours."""

_COLORS = 3


def backbone_config(published: Mapping[str, Any]) -> Qwen2_5VLBackboneConfig:
    """Returns the backbone's config out of a published config.json.

    Args:
        published: the file's content, as transformers 4 or 5 writes it.

    Raises:
        UsageError: if a field is missing or describes no model.
    """
    try:
        text, vision = text_fields(published), published["vision_config"]
        fields: dict[str, Any] = {ours: text[name] for name, ours in _DECODER_FIELDS.items()}
        rope = rope_of(text)
        found = {ours: first_of(vision, names) for names, ours in _VISION_FIELDS.items()}
        tower = {ours: value for ours, value in found.items() if value is not None}
        require_activation(vision, "vision_config.")
        if first_of(vision, ("in_channels", "in_chans")) not in (None, _COLORS):
            raise UsageError(f"vision_config.in_channels must be {_COLORS}")
        time, rows, columns = rope.sections
        if "fullatt_block_indexes" in vision:
            tower["full_attention_layers"] = tuple(vision["fullatt_block_indexes"])
        return Qwen2_5VLBackboneConfig(
            **fields,
            rope_theta=rope.theta,
            rotary_sections=(time, rows, columns),
            vision=VisionTowerConfig(**tower),
        )
    except KeyError as error:
        raise UsageError(f"config.json of the published model lacks {error}") from error
    except (TypeError, ValueError, ArithmeticError, AttributeError, UsageError) as error:
        raise UsageError(f"config.json of the published model is unfit: {error}") from error


def published_backbone(config: Qwen2_5VLBackboneConfig) -> dict[str, Any]:
    """Returns the fields of a published config.json that `backbone_config` reads back."""
    vision = {names[0]: getattr(config.vision, ours) for names, ours in _VISION_FIELDS.items()}
    return {
        **{name: getattr(config, ours) for name, ours in _DECODER_FIELDS.items()},
        "rope_theta": config.rope_theta,
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
