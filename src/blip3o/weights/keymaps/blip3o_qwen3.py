"""Weights of the Qwen3-SigLIP2 variant of BLIP3-o (Qwen3 with an understanding tower beside it).

    published                                       ours
    model.embed_tokens.*, model.layers.*, norm      backbone.decoder.*
    lm_head.weight (8B and larger only)             backbone.lm_head.weight
    model.vision_tower.vision_model.*               backbone.vision_tower.tower.*  (training only)
    model.mm_projector.*                            backbone.projector.*           (training only)
    model.latent_queries [1, Q, D]                  generator.query_tokens.weight [Q, D]
    model.dit.model.*                               generator.dit.*
    model.gen_vision_tower.vision_tower.model.*     image_encoder.tower.*          (training only)

The released inference class has neither tower nor projector, so a checkpoint that it wrote draws
images and sees none. The names are those that transformers 4.51 writes. Reference: parity family
`qwen3_siglip2` and its manifests.
"""

from collections.abc import Mapping
from typing import Any

from blip3o.core.errors import UsageError
from blip3o.models.backbones.qwen3 import Qwen3BackboneConfig
from blip3o.models.encoders.siglip2 import Siglip2EncoderConfig
from blip3o.weights.keymaps.hf_config import rope_of, text_fields
from blip3o.weights.keymaps.prefixes import PrefixMap
from blip3o.weights.keymaps.published import PublishedFamily

INFERENCE_PARTS = ("backbone.decoder", "backbone.lm_head", "generator")
"""Parts of a model whose weights are in every checkpoint of the family."""

UNDERSTANDING_PARTS = (*INFERENCE_PARTS, "backbone.vision_tower", "backbone.projector")
"""The same with what sees the images of prompts; only training runs save it."""

TRAINING_PARTS = (*UNDERSTANDING_PARTS, "image_encoder")
"""Parts whose weights are in a checkpoint that a training run saved."""

IMAGE_TOKEN_ID = 151_671
"""Placeholder of a prompt's images in the published tokenizer."""

NAMES = PrefixMap(
    (
        ("model.embed_tokens.", "backbone.decoder.embed_tokens."),
        ("model.layers.", "backbone.decoder.layers."),
        ("model.norm.", "backbone.decoder.norm."),
        ("lm_head.", "backbone.lm_head."),
        ("model.vision_tower.vision_model.", "backbone.vision_tower.tower."),
        ("model.mm_projector.", "backbone.projector."),
        ("model.latent_queries", "generator.query_tokens.weight"),
        ("model.dit.model.", "generator.dit."),
        ("model.gen_vision_tower.vision_tower.model.", "image_encoder.tower."),
    )
)

_FAMILY = PublishedFamily(NAMES, INFERENCE_PARTS)
to_published = _FAMILY.to_published
load_published = _FAMILY.load_published
plain = _FAMILY.plain

_DECODER_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "tie_word_embeddings": "tie_word_embeddings",
    "rms_norm_eps": "norm_eps",
    "max_position_embeddings": "max_positions",
}
_TOWER_FIELDS = {
    "image_size": "image_px",
    "patch_size": "patch_px",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
}


def backbone_config(
    published: Mapping[str, Any], vision: Mapping[str, Any], image_token_id: int = IMAGE_TOKEN_ID
) -> Qwen3BackboneConfig:
    """Returns the backbone's config out of published config.json files.

    Args:
        published: content of the model's file.
        vision: the vision part of the file of the understanding tower, which the model's file only
            names.
        image_token_id: id of the placeholder of a prompt's images.

    Raises:
        UsageError: if a field is missing or describes no model.
    """
    try:
        text = text_fields(published)
        fields: dict[str, Any] = {ours: text[name] for name, ours in _DECODER_FIELDS.items()}
        rope = rope_of(text)
        vision = vision.get("vision_config", vision)
        return Qwen3BackboneConfig(
            **fields,
            rope_theta=rope.theta,
            image_token_id=image_token_id,
            vision_tower=Siglip2EncoderConfig(
                **{ours: vision[name] for name, ours in _TOWER_FIELDS.items()}, keep_head=True
            ),
        )
    except KeyError as error:
        raise UsageError(f"config.json of the published model lacks {error}") from error
    except (TypeError, ValueError, ArithmeticError, AttributeError, UsageError) as error:
        raise UsageError(f"config.json of the published model is unfit: {error}") from error
