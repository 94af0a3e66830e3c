"""The base class of backbones: a decoder, its sizes, padding and caches.

Axes: B rows, T new positions, M images, D width, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from blip3o.core.bounds import Count, NotNegative, Positive, Whole
from blip3o.core.config import Dataclass
from blip3o.models.backbones.attention import step_parts
from blip3o.models.backbones.cache import KeyValueCache
from blip3o.models.backbones.packed import PackedCache, packed_states
from blip3o.models.backbones.ragged import RowBatch, RowCache
from blip3o.models.prompts import PromptImages
from blip3o.nn.decoder import CausalDecoder
from blip3o.nn.token_step import TokenStep

if TYPE_CHECKING:
    from blip3o.models.backbones.cache import Decoder
    from blip3o.models.backbones.packed import BackboneCache


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderSizes:
    """The settings that every decoder has; configs of backbones inherit from it.

    Args:
        kind: name in the table of backbones.
        vocab_size: number of token embeddings (V).
        hidden_size: width (D).
        intermediate_size: width inside the MLPs.
        num_layers: decoder layers.
        num_heads: query heads; D / num_heads wide unless the config has a `head_dim`.
        num_kv_heads: key/value heads.
        image_token_id: id of the placeholder that the tokens of an image replace.
        tie_word_embeddings: whether the embedding table is also the vocabulary head.
        norm_eps: epsilon of the decoder's norms.
        max_positions: longest supported sequence in tokens.
        rope_theta: base of the rotary frequencies.
    """

    kind: str
    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_layers: Count
    num_heads: Count
    num_kv_heads: Count
    image_token_id: Whole
    tie_word_embeddings: bool
    norm_eps: NotNegative = 1e-6
    max_positions: Count
    rope_theta: Positive = 1_000_000.0

    @property
    def num_axes(self) -> int:
        """1: positions count tokens."""
        return 1

    def for_transformers(self) -> dict[str, Any]:
        """Returns the sizes under the names that the decoder configs of transformers share."""
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.norm_eps,
        }


@runtime_checkable
class BackboneConfig(Dataclass, Protocol):
    """Config of a backbone, an entry of `BACKBONES`."""

    @property
    def kind(self) -> str:
        """Name in the table."""

    @property
    def vocab_size(self) -> int:
        """Number of token embeddings (V)."""

    @property
    def hidden_size(self) -> int:
        """Width (D)."""

    @property
    def max_positions(self) -> int:
        """Longest supported sequence in tokens."""

    @property
    def num_axes(self) -> int:
        """Axes of the rotary positions: 1, or 3 for time, row and column."""

    @property
    def image_token_id(self) -> int:
        """Id of the placeholder that the tokens of an image replace."""

    @property
    def image_channels(self) -> int | None:
        """Channels (C) of the projected image features; None with its own vision tower."""

    @property
    def token_px(self) -> int | None:
        """Side in pixels of the area that one token covers; None if only squares are accepted."""

    def num_image_tokens(self, image_px: int) -> int:
        """Returns the number of tokens of a square image that the vision tower sees."""

    def build(self) -> "Backbone[Any]":
        """Returns the backbone with fresh weights."""

    def build_decoder(self) -> "Decoder":
        """Returns the language model without its vocabulary head, with fresh weights."""


ConfigT = TypeVar("ConfigT", bound=BackboneConfig)


class Backbone(nn.Module, Generic[ConfigT]):
    """Token ids and images to hidden states, and hidden states to vocabulary logits.

    A subclass sets `decoder`, `lm_head` and the modules that convert images into tokens.

    Args:
        config: sizes.

    Attributes:
        decoder: the language model without its vocabulary head.
        lm_head: the vocabulary head; None if the embedding table is used instead.
        padding_free: whether passes without a cache skip padding, see `packed`; may be changed.
    """

    seams: ClassVar[tuple[str, ...]] = (
        "embed",
        "image_tokens",
        "forward",
        "layer_states",
        "block_states",
        "logits",
    )
    """Methods that need weights and are called from outside; offloading wraps them."""

    padding_free: bool = False
    decoder: "Decoder"
    lm_head: nn.Linear | None

    def __init__(self, config: ConfigT) -> None:
        super().__init__()
        self.config = config

    def vision_inputs(self, pixels: Tensor | Sequence[Tensor]) -> PromptImages:
        """Returns prompt images in the form that `embed` takes, for a backbone with a vision tower.

        Args:
            pixels: [M, 3, H, W] in [-1, 1]; images [3, H, W] of several shapes if the config has a
                `token_px`.
        """
        raise NotImplementedError

    def image_tokens(self, images: PromptImages) -> Tensor:
        """Returns the tokens of all images, [..., D], in the order of their placeholders."""
        raise NotImplementedError

    def count_tokens(self, images: PromptImages) -> int:
        """Returns the number of tokens of all images together."""
        raise NotImplementedError

    def image_positions(
        self, input_ids: Tensor, attention_mask: Tensor, images: PromptImages
    ) -> Tensor | None:
        """Returns the rotary positions of text about images, for `forward`; None to count tokens.

        Args:
            input_ids: whole rows, [B, T].
            attention_mask: True for real tokens, [B, T].
            images: all images in the order of their placeholders.
        """
        del input_ids, attention_mask, images

    def embed(self, input_ids: Tensor, images: PromptImages | None = None) -> Tensor:
        """Returns the input embeddings [B, T, D], with image tokens at their placeholders.

        Args:
            input_ids: [B, T].
            images: all images in the order of their placeholders.

        Raises:
            ValueError: if the numbers of placeholders and of image tokens differ.
        """
        embeds = self.decoder.embed_tokens(input_ids)
        is_image = input_ids == self.config.image_token_id
        num_tokens = 0 if images is None else self.count_tokens(images)
        if int(is_image.sum()) != num_tokens:
            raise ValueError(
                f"the prompts hold {int(is_image.sum())} image placeholders, "
                f"the images give {num_tokens} feature tokens"
            )
        if images is None:
            return embeds
        tokens = self.image_tokens(images).to(embeds.dtype)
        return embeds.masked_scatter(is_image.unsqueeze(-1), tokens)

    def forward(
        self,
        embeds: Tensor,
        attention_mask: Tensor,
        cache: "BackboneCache | RowBatch | None" = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Returns the hidden states after the final norm, [B, T, D].

        Args:
            embeds: input embeddings of the new positions, [B, T, D].
            attention_mask: True for real tokens of the whole sequence, cached positions included,
                [B, past + T]; padding may be on either side.
            cache: keys and values of earlier positions; the new ones are appended. A `RowBatch`
                ignores the mask, because each of its rows attends to all of its own tokens.
            positions: rotary positions from `image_positions`; None counts the real tokens of each
                row and continues after the cached positions.
        """
        if isinstance(cache, RowBatch):
            return cache.states(self.decoder, embeds)
        if positions is None:
            deltas = None if cache is None else cache.rope_deltas
            positions = self._counted_positions(attention_mask, embeds.shape[1], deltas)
        elif cache is not None:
            cache.rope_deltas = positions.amax((0, 2)) + 1 - attention_mask.sum(1)
        if self.is_packed(attention_mask, cache):
            return packed_states(self.decoder, embeds, attention_mask, positions, cache)
        output = self.decoder(
            inputs_embeds=embeds,
            attention_mask=_causal_mask(attention_mask, embeds.shape[1]),
            position_ids=positions,
            past_key_values=cache,
        )
        return output.last_hidden_state

    def layer_states(self, embeds: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Returns the hidden states after every layer, [B, T, D] each.

        The states of the last layer are those of `forward`, after the final norm. Padding is
        computed, also with `padding_free`.

        Args:
            embeds: input embeddings of whole rows, [B, T, D].
            attention_mask: True for real tokens, [B, T].
        """
        output = self.decoder(
            inputs_embeds=embeds,
            attention_mask=_causal_mask(attention_mask, embeds.shape[1]),
            position_ids=self._counted_positions(attention_mask, embeds.shape[1]),
            output_hidden_states=True,
        )
        states = output.hidden_states
        assert states is not None
        return states[1:]  # without the embeddings

    def _counted_positions(
        self, attention_mask: Tensor, length: int, deltas: Tensor | None = None
    ) -> Tensor:
        """Returns rotary positions that count the real tokens of each row, for the last ones."""
        positions = (attention_mask.long().cumsum(1) - 1).clamp_min(0)[:, -length:]
        if deltas is not None:
            positions = positions + deltas.unsqueeze(1)
        return positions.expand(self.num_axes, -1, -1) if self.num_axes > 1 else positions

    def block_states(
        self,
        embeds: Tensor,
        visible: Tensor,
        cache: KeyValueCache,
        positions: Tensor,
        *,
        is_causal: bool = False,
    ) -> Tensor:
        """Returns the states of a block of tokens that attend to each other, [B, N, D].

        Generators that draw with the backbone's own layers read noisy image tokens this way.

        Args:
            embeds: input embeddings of the block, [B, N, D].
            visible: True for the cached positions that the block attends to, bool [B, past].
            cache: keys and values of earlier positions; those of the block are appended.
            positions: rotary positions of the block, int64 [B, N]; [axes, B, N] if the axes differ.
            is_causal: whether a token of the block attends only to itself and those before it.
        """
        return block_states(
            self.decoder, self.num_axes, embeds, visible, cache, positions, is_causal=is_causal
        )

    def is_packed(self, attention_mask: Tensor, cache: "BackboneCache | None" = None) -> bool:
        """Returns whether a pass skips padding; one with a cache does as the cache's first pass."""
        if cache is not None:
            return isinstance(cache, PackedCache)
        return self.padding_free and not bool(attention_mask.all())

    @property
    def num_axes(self) -> int:
        """Axes of the rotary positions."""
        return self.config.num_axes

    @property
    def filler_id(self) -> int:
        """Id of a token that needs no image, to fill places that nothing reads."""
        return (self.config.image_token_id + 1) % self.config.vocab_size

    @property
    def is_frozen(self) -> bool:
        """Whether no weight is trained."""
        return not any(parameter.requires_grad for parameter in self.parameters())

    def new_cache(self, *, packed: bool = False) -> "BackboneCache":
        """Returns an empty cache for `forward`.

        Args:
            packed: whether the passes that share the cache skip padding.
        """
        return PackedCache() if packed else KeyValueCache()

    def new_rows(self, cache: "BackboneCache", attention_mask: Tensor) -> list[RowCache]:
        """Returns the rows of a cache without their padding, for a `RowBatch`.

        Args:
            cache: filled by a pass over whole rows.
            attention_mask: the mask of that pass, [B, T].
        """
        assert not isinstance(cache, PackedCache), "rows are read with padding"
        deltas = [0] * len(attention_mask)
        if cache.rope_deltas is not None:
            deltas = cache.rope_deltas.tolist()
        pairs, is_whole = cache.key_values(), bool(attention_mask.all())
        places = [None if is_whole else one.nonzero().squeeze(1) for one in attention_mask]
        return [
            RowCache.of(pairs, int(deltas[row]), row=row, places=places[row])
            for row in range(len(attention_mask))
        ]

    def token_step(self, *, may_copy: bool, num_rows: int) -> TokenStep | None:
        """Returns a fast pass of one token for each row; None if the weights are elsewhere.

        Offloaded weights are elsewhere. When modules or weights change, a new one is needed.

        Args:
            may_copy: see `JoinedLinear`.
            num_rows: see `TokenStep`.
        """
        if any(weight.is_meta for weight in self.decoder.parameters()):
            return None
        head = self.lm_head
        if head is None:
            weight = self.decoder.embed_tokens.weight
            head = nn.Linear(*weight.shape[::-1], bias=False, device="meta")
            head.weight = weight
        decoder = self.decoder
        own = isinstance(decoder, CausalDecoder)
        parts = decoder.step_parts() if own else step_parts(decoder)
        return TokenStep(parts, head, may_copy=may_copy, num_rows=num_rows)

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns vocabulary logits [..., V] of hidden states [..., D]."""
        if self.lm_head is None:
            return nn.functional.linear(hidden, self.decoder.embed_tokens.weight)
        return self.lm_head(hidden)


def _causal_mask(attention_mask: Tensor, num_new: int) -> Tensor | None:
    """Returns the mask of the last T positions, bool [B, 1, T, past + T]; None if none is needed.

    None means that a token attends to all those before it, in rows of new tokens only; or that the
    only new token of a row attends to all of the row.
    """
    length = attention_mask.shape[1]
    if num_new in (1, length) and bool(attention_mask.all()):
        return None
    causal = torch.ones(num_new, length, dtype=torch.bool, device=attention_mask.device)
    return attention_mask.bool()[:, None, None] & causal.tril(length - num_new)


def vocabulary_head(vocab_size: int, hidden_size: int, *, is_tied: bool) -> nn.Linear | None:
    """Returns a fresh vocabulary head; None if the embedding table takes its place."""
    return None if is_tied else nn.Linear(hidden_size, vocab_size, bias=False)


def block_states(
    decoder: "Decoder",
    num_axes: int,
    embeds: Tensor,
    visible: Tensor,
    cache: KeyValueCache,
    positions: Tensor,
    *,
    is_causal: bool = False,
) -> Tensor:
    """Returns the states of a block of tokens in any decoder; see `Backbone.block_states`.

    Args:
        decoder: a decoder of the shape of the backbone's.
        num_axes: axes of its rotary positions.
        embeds: as there.
        visible: as there.
        cache: as there.
        positions: as there.
        is_causal: as there.
    """
    rows, length = embeds.shape[:2]
    mask = nn.functional.pad(visible, (0, length), value=True)[:, None, None]
    mask = mask.expand(rows, 1, length, -1)
    output = decoder(
        inputs_embeds=embeds,
        attention_mask=mask.tril(visible.shape[1]) if is_causal else mask,
        position_ids=positions.expand(num_axes, -1, -1) if num_axes > 1 else positions,
        past_key_values=cache,
    )
    return output.last_hidden_state
