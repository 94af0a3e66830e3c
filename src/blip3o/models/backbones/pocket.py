"""A small decoder-only language model of our own: the backbone of the pocket model.

It needs no library besides torch, which keeps the start of a process short.
"""

import dataclasses

from blip3o.core.bounds import Count, Positive, Whole
from blip3o.models.backbones.decoder_only import DecoderOnlyBackbone, FeaturesOrTower
from blip3o.nn.decoder import BlockSizes, CausalDecoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class PocketBackboneConfig(FeaturesOrTower):
    """Sizes of the decoder and of its projector; see also `FeaturesOrTower`.

    Args:
        head_dim: width of a head.
        rotary_dim: channels of a head that rotate with the position, even; the other channels
            compare tokens by content alone, at any distance.
        norm_heads: normalize each query and key head by its root mean square.
        init_std: standard deviation of the fresh weights of embeddings and linear layers.

    Raises:
        ValueError: if `num_kv_heads` does not divide `num_heads`, or if `rotary_dim` is odd or
            larger than a head.
    """

    kind: str = "pocket"
    head_dim: Count
    rotary_dim: Whole
    norm_heads: bool = True
    init_std: Positive = 0.02
    tie_word_embeddings: bool = True
    max_positions: Count = 512
    rope_theta: Positive = 10_000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}"
            )
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise ValueError(
                f"rotary_dim must be even and at most head_dim {self.head_dim}, "
                f"got {self.rotary_dim}"
            )

    @classmethod
    def tiny(cls) -> "PocketBackboneConfig":
        """Returns the smallest useful config, for tests."""
        return cls(
            vocab_size=320,
            hidden_size=16,
            intermediate_size=32,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            head_dim=8,
            rotary_dim=4,
            image_token_id=5,
            image_channels=16,
        )

    def build(self) -> DecoderOnlyBackbone:
        """Returns the backbone with fresh weights."""
        return DecoderOnlyBackbone(self)

    def build_decoder(self) -> CausalDecoder:
        """Returns the decoder alone, with fresh weights."""
        sizes = BlockSizes(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            norm_eps=self.norm_eps,
            norm_heads=self.norm_heads,
        )
        return CausalDecoder(
            sizes,
            num_layers=self.num_layers,
            vocab_size=self.vocab_size,
            rotary_dim=self.rotary_dim,
            rope_theta=self.rope_theta,
            init_std=self.init_std,
        )
