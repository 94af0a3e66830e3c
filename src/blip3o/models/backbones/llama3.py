"""Llama 3 as a backbone, with a CLIP or SigLIP tower for prompt images.

The architecture is that of the released Llama class of BLIP3-o, whose weights were never published.
"""

import dataclasses
from typing import TYPE_CHECKING

from blip3o.core.bounds import Count, NotNegative, Positive
from blip3o.core.config import component
from blip3o.core.errors import unknown_name
from blip3o.models.backbones.attention import with_attention
from blip3o.models.backbones.base import DecoderSizes
from blip3o.models.backbones.decoder_only import DecoderOnlyBackbone, SquareImages
from blip3o.models.encoders.normalizer import FeatureNormalizerConfig
from blip3o.models.encoders.siglip2 import Siglip2EncoderConfig
from blip3o.models.protocols import ImageEncoderConfig

if TYPE_CHECKING:
    from transformers.models.llama.modeling_llama import LlamaModel

_PUBLISHED: dict[str, dict[str, int]] = {
    "3-8b": {"hidden": 4096, "intermediate": 14_336, "layers": 32, "heads": 32, "stretch": 1},
    "3.1-8b": {"hidden": 4096, "intermediate": 14_336, "layers": 32, "heads": 32, "stretch": 8},
    "3.2-1b": {"hidden": 2048, "intermediate": 8192, "layers": 16, "heads": 32, "stretch": 32},
    "3.2-3b": {"hidden": 3072, "intermediate": 8192, "layers": 28, "heads": 24, "stretch": 32},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3BackboneConfig(DecoderSizes, SquareImages):
    """Sizes of a Llama 3 decoder and of its vision tower; see also `DecoderSizes`.

    Args:
        vision_tower: config of the tower for prompt images, an entry of `ENCODERS`.
        rope_stretch: factor that divides the slow rotary frequencies, for sequences longer than
            those of pretraining (Llama 3.1: 8, Llama 3.2: 32); 1 leaves them unchanged.
        first_positions: longest sequence of pretraining.

    Raises:
        ValueError: if `num_heads` does not divide `hidden_size`.
    """

    kind: str = "llama3"
    vision_tower: ImageEncoderConfig = component("blip3o.models.encoders:ENCODERS")
    tie_word_embeddings: bool = False
    norm_eps: NotNegative = 1e-5
    max_positions: Count = 8192
    rope_theta: Positive = 500_000.0
    rope_stretch: Positive = 1.0
    first_positions: Count = 8192

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"num_heads {self.num_heads} does not divide hidden_size {self.hidden_size}"
            )

    @classmethod
    def tiny(cls) -> "Llama3BackboneConfig":
        """Returns the smallest useful config, for tests."""
        return cls(
            vocab_size=320,
            hidden_size=16,
            intermediate_size=32,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            image_token_id=5,
            vision_tower=Siglip2EncoderConfig.tiny(),
            max_positions=512,
            rope_stretch=8.0,
            first_positions=64,
        )

    @classmethod
    def published(cls, size: str) -> "Llama3BackboneConfig":
        """Returns a Llama 3 with the four tokens that BLIP3-o adds and a 729-token tower.

        Args:
            size: "3-8b", "3.1-8b", "3.2-1b" or "3.2-3b".

        Raises:
            UsageError: if the size is unknown.
        """
        if size not in _PUBLISHED:
            raise unknown_name("size of Llama 3", size, _PUBLISHED)
        sizes = _PUBLISHED[size]
        return cls(
            vocab_size=128_260,
            hidden_size=sizes["hidden"],
            intermediate_size=sizes["intermediate"],
            num_layers=sizes["layers"],
            num_heads=sizes["heads"],
            num_kv_heads=8,
            image_token_id=128_259,
            vision_tower=Siglip2EncoderConfig.so400m(image_px=378, patch_px=14),
            tie_word_embeddings=size.startswith("3.2-"),
            max_positions=8192 if sizes["stretch"] == 1 else 131_072,
            rope_stretch=float(sizes["stretch"]),
        )

    @property
    def image_channels(self) -> None:
        """None: the backbone sees pixels with its own tower."""
        return None

    @property
    def image_normalizer(self) -> FeatureNormalizerConfig:
        """The identity: the tower's features go to the projector unchanged."""
        return FeatureNormalizerConfig()

    def build(self) -> DecoderOnlyBackbone:
        """Returns the backbone with fresh weights."""
        return DecoderOnlyBackbone(self)

    def build_decoder(self) -> "LlamaModel":
        """Returns the decoder alone, with fresh weights."""
        from transformers.models.llama.configuration_llama import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaModel

        rope: dict[str, str | float] = {"rope_type": "default", "rope_theta": self.rope_theta}
        if self.rope_stretch != 1.0:
            rope |= {
                "rope_type": "llama3",
                "factor": self.rope_stretch,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": self.first_positions,
            }
        return with_attention(
            LlamaModel(
                LlamaConfig(
                    **self.for_transformers(),
                    rope_parameters=rope,
                    tie_word_embeddings=self.tie_word_embeddings,
                )
            )
        )
