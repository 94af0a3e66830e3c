"""Decoder-only language models as backbones, with a projector for images and an optional tower.

The layers are transformers' own; this adapter adds what BLIP3-o needs around them: a two-layer
projector for image tokens, embeddings as input, padded rows with positions that start at each
row's first real token, and a cache that can be filled without gradient. Images come either as
features of the model's image encoder or as pixels, for an understanding tower of the backbone's
own. Axes: B rows, T tokens, M images, N tokens of an image, D width, V vocabulary.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from blip3o.models.backbones.attention import use_attention
from blip3o.models.backbones.packed import PackedCache, is_packed, packed_states
from blip3o.models.backbones.ragged import RowBatch, RowCache
from blip3o.models.encoders.normalizer import FeatureNormalizer, FeatureNormalizerConfig

if TYPE_CHECKING:
    from transformers.cache_utils import Cache


class DecoderOnlyConfig(Protocol):
    """What `DecoderOnlyBackbone` asks of a config; each language model has one of its own."""

    @property
    def vocab_size(self) -> int:
        """Number of token embeddings (V)."""
        ...

    @property
    def hidden_size(self) -> int:
        """Width (D)."""
        ...

    @property
    def image_token_id(self) -> int:
        """Id of the placeholder that an image's tokens replace."""
        ...

    @property
    def image_channels(self) -> int | None:
        """Channels of the features that are projected; None with a tower."""
        ...

    @property
    def image_normalizer(self) -> FeatureNormalizerConfig:
        """What the features pass before the projector."""
        ...

    @property
    def vision_tower(self) -> Any:  # noqa: ANN401  (configs are of many types)
        """A config out of `ENCODERS`, or None."""
        ...

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the embedding table is also the vocabulary head."""
        ...

    def build_decoder(self) -> Any:  # noqa: ANN401  (transformers is not imported at the top)
        """Returns the language model without its vocabulary head, with fresh weights."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TowerInputs:
    """Images of prompts for an understanding tower.

    Args:
        pixels: [M, 3, P, P] in [-1, 1], P the side that the tower takes.
    """

    pixels: Tensor


class DecoderOnlyBackbone(nn.Module):
    """Token ids and images to hidden states, and hidden states to vocabulary logits.

    Args:
        config: sizes; its `vision_tower` is built here if it has one.

    Attributes:
        padding_free: see `packed.enable`.

    Reference:
        The projector is the published `mlp2x_gelu`; parity family `qwen3_siglip2`.
    """

    padding_free = False

    def __init__(self, config: DecoderOnlyConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = config.build_decoder()
        use_attention(self.decoder)
        tower = config.vision_tower
        channels = config.image_channels if tower is None else tower.num_channels
        assert channels is not None, "configs ask for image_channels or a vision_tower"
        self.image_normalizer = FeatureNormalizer(config.image_normalizer, channels)
        self.projector = nn.Sequential(
            nn.Linear(self.image_normalizer.num_components, config.hidden_size),
            nn.GELU(),  # the exact one, not its tanh approximation
            nn.Linear(config.hidden_size, config.hidden_size),
        )
        self.vision_tower = None if tower is None else tower.build()
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )

    def vision_inputs(self, pixels: Tensor) -> TowerInputs:
        """Returns images as `embed` takes them, resized if the tower's side is another one.

        Args:
            pixels: [M, 3, H, W] in [-1, 1].
        """
        side = self.config.vision_tower.image_px
        if pixels.shape[2:] != (side, side):
            # In fp32: torch has no such resampling for half types on the CPU.
            pixels = nn.functional.interpolate(
                pixels.float(), (side, side), mode="bilinear", antialias=True
            ).to(pixels)
        return TowerInputs(pixels=pixels)

    def image_tokens(self, images: Tensor | TowerInputs) -> Tensor:
        """Returns the tokens that stand for images, [M, N, D].

        Args:
            images: features [M, N, C] of the image encoder, or pixels for the tower.
        """
        if isinstance(images, TowerInputs):
            assert self.vision_tower is not None, "vision_inputs makes these, for a tower only"
            images = self.vision_tower(images.pixels.to(next(self.projector.parameters()).dtype))
        normalized = self.image_normalizer(images)
        return self.projector(normalized.to(self.projector[0].weight.dtype))

    def embed(self, input_ids: Tensor, images: Tensor | TowerInputs | None = None) -> Tensor:
        """Returns the input embeddings, with the images' tokens at their placeholders.

        Args:
            input_ids: [B, T].
            images: all images, in the order of their placeholders: features [M, N, C] of the
                image encoder, or what `vision_inputs` made of pixels.

        Raises:
            ValueError: if placeholders and feature tokens differ in number.
        """
        embeds = self.decoder.embed_tokens(input_ids)
        is_image = input_ids == self.config.image_token_id
        num_tokens = self._count_tokens(images)
        if int(is_image.sum()) != num_tokens:
            raise ValueError(
                f"the prompts hold {int(is_image.sum())} image placeholders, "
                f"the images give {num_tokens} feature tokens"
            )
        if images is None:
            return embeds
        tokens = self.image_tokens(images).flatten(0, 1).to(embeds.dtype)
        return embeds.masked_scatter(is_image.unsqueeze(-1), tokens)

    def forward(
        self,
        embeds: Tensor,
        attention_mask: Tensor,
        cache: "Cache | PackedCache | RowBatch | None" = None,
    ) -> Tensor:
        """Returns the hidden states after the final norm, [B, T, D].

        Args:
            embeds: input embeddings of the new positions, [B, T, D].
            attention_mask: True for real tokens of the whole sequence, cached positions included,
                [B, past + T]; padding may be on either side.
            cache: keys and values of earlier positions; the new ones are added to it. A
                `RowBatch` knows itself what each row looks at.
        """
        if isinstance(cache, RowBatch):
            return cache.states(self.decoder, embeds)
        num_new = embeds.shape[1]
        positions = (attention_mask.long().cumsum(1) - 1).clamp_min(0)[:, -num_new:]
        if is_packed(self, attention_mask, cache):
            return packed_states(self.decoder, embeds, attention_mask, positions, cache)
        output = self.decoder(
            inputs_embeds=embeds,
            attention_mask=None if bool(attention_mask.all()) else attention_mask.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state

    def new_cache(self, *, packed: bool = False) -> "Cache | PackedCache":
        """Returns an empty key/value cache for `forward`.

        Args:
            packed: for padding-free passes.
        """
        from transformers.cache_utils import DynamicCache

        return PackedCache() if packed else DynamicCache()

    def new_row(self, cache: "Cache | PackedCache") -> RowCache:
        """Returns what a pass over a single row left in a cache of `new_cache`, for `RowBatch`."""
        assert not isinstance(cache, PackedCache), "rows are read with padding"
        return RowCache.of(cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns logits [..., V] of hidden states [..., D]."""
        if self.lm_head is None:
            return nn.functional.linear(hidden, self.decoder.embed_tokens.weight)
        return self.lm_head(hidden)

    def _count_tokens(self, images: Tensor | TowerInputs | None) -> int:
        if images is None:
            return 0
        if isinstance(images, TowerInputs):
            return len(images.pixels) * self.config.vision_tower.num_tokens
        return images.shape[:2].numel()
