"""Weights of the released BLIP3-o 4B and 8B models (Qwen2.5-VL backbone).

    published                                       ours
    visual.*                                        backbone.visual.*
    model.embed_tokens.*, model.layers.*, norm      backbone.decoder.*
    lm_head.weight (8B only)                        backbone.lm_head.weight
    model.latent_queries [1, Q, D]                  generator.query_tokens.weight [Q, D]
    model.dit.model.*                               generator.dit.*
    model.gen_vision_tower.vision_tower.model.*     image_encoder.tower.* (not in every checkpoint)

transformers 4.51 writes these names; `spellings` lists those of newer versions.
Reference: parity manifests `blip3o_qwen_*`.
"""

from collections.abc import Mapping

from blip3o.core.config import from_dict
from blip3o.core.errors import UsageError
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.weights.keymaps.hf_config import (
    DECODER_FIELDS,
    first_of,
    reported,
    require_activation,
    rope_of,
    text_fields,
)
from blip3o.weights.keymaps.published import DECODER_NAMES, IMAGE_NAMES, PrefixMap, PublishedFamily
from blip3o.weights.small_files import require_mapping

INFERENCE_PARTS = ("backbone", "generator")
"""Parts of a model whose weights are in every checkpoint of the family."""

TRAINING_PARTS = (*INFERENCE_PARTS, "image_encoder")
"""Parts of a model whose weights are in a checkpoint of a training run."""

NAMES = PrefixMap((("visual.", "backbone.visual."), *DECODER_NAMES, *IMAGE_NAMES))

# Early revisions registered an auto-encoder that they never used.
FAMILY = PublishedFamily(NAMES, INFERENCE_PARTS, strays=("model.vae.",))
to_published = FAMILY.to_published
load_published = FAMILY.load_published

_FIELDS = {**DECODER_FIELDS, "image_token_id": "image_token_id"}
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
"""Names of each published field, and ours. The first one is written."""

_COLORS = 3


def backbone_config(published: Mapping[str, object]) -> Qwen2_5VLBackboneConfig:
    """Returns the backbone's config from a published config.json.

    Args:
        published: content of the file, as transformers 4 or 5 writes it.

    Raises:
        UsageError: if a field is missing or invalid.
    """
    with reported():
        text = text_fields(published)
        vision = require_mapping(published["vision_config"], "vision_config")
        require_activation(vision, "vision_config.")
        if first_of(vision, ("in_channels", "in_chans")) not in (None, _COLORS):
            raise UsageError(f"vision_config.in_channels must be {_COLORS}")
        tower = {ours: first_of(vision, names) for names, ours in _VISION_FIELDS.items()}
        tower["full_attention_layers"] = vision.get("fullatt_block_indexes")
        fields: dict[str, object] = {ours: text[name] for name, ours in _FIELDS.items()}
        fields["rope_theta"], fields["rotary_sections"] = rope_of(text)
        fields["vision"] = {ours: value for ours, value in tower.items() if value is not None}
        return from_dict(Qwen2_5VLBackboneConfig, fields)


def published_backbone(config: Qwen2_5VLBackboneConfig) -> dict[str, object]:
    """Returns the fields of a published config.json from which `backbone_config` gives a config."""
    vision = {names[0]: getattr(config.vision, ours) for names, ours in _VISION_FIELDS.items()}
    return {
        **{name: getattr(config, ours) for name, ours in _FIELDS.items()},
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
