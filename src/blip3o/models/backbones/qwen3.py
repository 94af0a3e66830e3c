"""Qwen3 as a backbone: the language model of the Qwen3-SigLIP2 variant, and of small models.

A small model projects features of its image encoder. The published variant sees images with its
own SigLIP2 tower and generates EVA-CLIP features.
"""

import dataclasses
from typing import TYPE_CHECKING

from blip3o.core.bounds import Count
from blip3o.core.errors import unknown_name
from blip3o.models.backbones.attention import with_attention
from blip3o.models.backbones.decoder_only import DecoderOnlyBackbone, FeaturesOrTower
from blip3o.models.encoders.siglip2 import Siglip2EncoderConfig

if TYPE_CHECKING:
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

_PUBLISHED: dict[str, dict[str, int]] = {
    "0.6b": {"hidden": 1024, "intermediate": 3072, "layers": 28, "heads": 16, "tied": True},
    "1.7b": {"hidden": 2048, "intermediate": 6144, "layers": 28, "heads": 16, "tied": True},
    "4b": {"hidden": 2560, "intermediate": 9728, "layers": 36, "heads": 32, "tied": True},
    "8b": {"hidden": 4096, "intermediate": 12_288, "layers": 36, "heads": 32, "tied": False},
    "14b": {"hidden": 5120, "intermediate": 17_408, "layers": 40, "heads": 40, "tied": False},
    "32b": {"hidden": 5120, "intermediate": 25_600, "layers": 64, "heads": 64, "tied": False},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3BackboneConfig(FeaturesOrTower):
    """Sizes of a Qwen3 decoder and of its projector; see also `FeaturesOrTower`.

    Args:
        head_dim: width of a head.
    """

    kind: str = "qwen3"
    head_dim: Count
    tie_word_embeddings: bool = True
    max_positions: Count = 512

    @classmethod
    def tiny(cls) -> "Qwen3BackboneConfig":
        """Returns the smallest useful config, for tests."""
        return cls(
            vocab_size=320,
            hidden_size=16,
            intermediate_size=32,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            head_dim=8,
            image_token_id=5,
            image_channels=16,
        )

    @classmethod
    def published(cls, size: str) -> "Qwen3BackboneConfig":
        """Returns the sizes of the SigLIP2 variant over a Qwen3, with its vocabulary and tower.

        Args:
            size: "0.6b", "1.7b", "4b", "8b", "14b" or "32b"; parity manifests hold 1.7b and 4b.

        Raises:
            UsageError: if the size is unknown.
        """
        if size not in _PUBLISHED:
            raise unknown_name("size of Qwen3", size, _PUBLISHED)
        sizes = _PUBLISHED[size]
        return cls(
            vocab_size=151_672,
            hidden_size=sizes["hidden"],
            intermediate_size=sizes["intermediate"],
            num_layers=sizes["layers"],
            num_heads=sizes["heads"],
            num_kv_heads=8,
            head_dim=128,
            image_token_id=151_671,
            vision_tower=Siglip2EncoderConfig.so400m(image_px=512, patch_px=16, keep_head=True),
            tie_word_embeddings=bool(sizes["tied"]),
            max_positions=40_960,
        )

    def build(self) -> DecoderOnlyBackbone:
        """Returns the backbone with fresh weights."""
        return DecoderOnlyBackbone(self)

    def build_decoder(self) -> "Qwen3Model":
        """Returns the decoder alone, with fresh weights."""
        from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
        from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

        return with_attention(
            Qwen3Model(
                Qwen3Config(
                    **self.for_transformers(),
                    head_dim=self.head_dim,
                    rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
                    tie_word_embeddings=self.tie_word_embeddings,
                )
            )
        )
