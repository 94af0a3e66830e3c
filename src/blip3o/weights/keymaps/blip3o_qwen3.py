"""Weights of the Qwen3-SigLIP2 variant of BLIP3-o: Qwen3 with a tower for images of prompts.

    published                                       ours
    model.embed_tokens.*, model.layers.*, norm      backbone.decoder.*
    lm_head.weight (8B and larger only)             backbone.lm_head.weight
    model.vision_tower.vision_model.*               backbone.vision_tower.tower.*  (training only)
    model.mm_projector.*                            backbone.projector.*           (training only)
    model.latent_queries [1, Q, D]                  generator.query_tokens.weight [Q, D]
    model.dit.model.*                               generator.dit.*
    model.gen_vision_tower.vision_tower.model.*     image_encoder.tower.*          (training only)

The released inference class has neither tower nor projector. A checkpoint that it wrote generates
images but cannot read any. transformers 4.51 writes these names.
Reference: parity family `qwen3_siglip2` and its manifests.
"""

from collections.abc import Mapping

from blip3o.core.config import from_dict
from blip3o.models.backbones.qwen3 import Qwen3BackboneConfig
from blip3o.weights.keymaps.hf_config import DECODER_FIELDS, reported, rope_of, text_fields
from blip3o.weights.keymaps.published import DECODER_NAMES, IMAGE_NAMES, PrefixMap, PublishedFamily
from blip3o.weights.small_files import require_mapping

INFERENCE_PARTS = ("backbone.decoder", "backbone.lm_head", "generator")
"""Parts of a model whose weights are in every checkpoint of the family."""

UNDERSTANDING_PARTS = (*INFERENCE_PARTS, "backbone.vision_tower", "backbone.projector")
"""The inference parts, and the parts that read images of prompts (only training runs save them)."""

TRAINING_PARTS = (*UNDERSTANDING_PARTS, "image_encoder")
"""Parts of a model whose weights are in a checkpoint of a training run."""

IMAGE_TOKEN_ID = 151_671
"""Placeholder for the images of a prompt in the published tokenizer."""

NAMES = PrefixMap(
    (
        *DECODER_NAMES,
        ("model.vision_tower.vision_model.", "backbone.vision_tower.tower."),
        ("model.mm_projector.", "backbone.projector."),
        *IMAGE_NAMES,
    )
)

_FAMILY = PublishedFamily(NAMES, INFERENCE_PARTS)
to_published = _FAMILY.to_published
load_published = _FAMILY.load_published

_FIELDS = {**DECODER_FIELDS, "head_dim": "head_dim"}
_TOWER_FIELDS = {
    "image_size": "image_px",
    "patch_size": "patch_px",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
}


def backbone_config(
    published: Mapping[str, object],
    vision: Mapping[str, object],
    image_token_id: int = IMAGE_TOKEN_ID,
) -> Qwen3BackboneConfig:
    """Returns the backbone's config from published config.json files.

    Args:
        published: content of the model's file.
        vision: content of the understanding tower's file, or its `vision_config`; the model's file
            only names the tower.
        image_token_id: id of the placeholder for the images of a prompt.

    Raises:
        UsageError: if a field is missing or invalid.
    """
    with reported():
        text = text_fields(published)
        fields: dict[str, object] = {ours: text[name] for name, ours in _FIELDS.items()}
        fields |= {"rope_theta": rope_of(text)[0], "image_token_id": image_token_id}
        vision = require_mapping(vision.get("vision_config", vision), "vision_config")
        tower = {ours: vision[name] for name, ours in _TOWER_FIELDS.items()}
        fields["vision_tower"] = {"kind": "siglip2", "keep_head": True, **tower}
        return from_dict(Qwen3BackboneConfig, fields)
