"""Padding-free passes of a decoder: the real tokens of all rows are concatenated into one row.

Every layer except attention processes tokens independently, so removing the padding changes nothing
there. Attention receives the row lengths: layers pass the decoder's extra argument `packing` on to
their attention function. Axes: B rows, T new positions, S real tokens of all rows, H heads, K head
dim, D width.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from blip3o.models.backbones.cache import KeyValueCache

if TYPE_CHECKING:
    from blip3o.models.backbones.cache import Decoder


@dataclasses.dataclass(frozen=True)
class Packing:
    """Row lengths of a packed pass.

    Args:
        new: number of new tokens of each row.
        seen: number of tokens of each row, cached and new; at least `new`.
        device: device of the pass.
    """

    new: list[int]
    seen: list[int]
    device: torch.device

    @functools.cached_property
    def _masks(self) -> list[Tensor | None]:
        """Causal mask [new, seen] of each row; None if all its tokens are new."""
        return [
            None
            if new == seen
            else torch.ones(new, seen, dtype=torch.bool, device=self.device).tril(seen - new)
            for new, seen in zip(self.new, self.seen, strict=True)
        ]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Returns causal attention within rows, [1, S, H, K].

        Args:
            query: of the new tokens, [1, H, S, K].
            key: of the seen tokens, [1, num_kv_heads, S', K].
            value: of the seen tokens, [1, num_kv_heads, S', K].
            scale: factor of the query-key products; None for 1 / sqrt(K).
        """
        sides = query.split(self.new, 2), key.split(self.seen, 2), value.split(self.seen, 2)
        is_grouped = query.shape[1] != key.shape[1]
        mixed = [
            functional.scaled_dot_product_attention(
                *row, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=is_grouped
            )
            for *row, mask in zip(*sides, self._masks, strict=True)
        ]
        return torch.cat(mixed, dim=2).transpose(1, 2)


class PackedCache:
    """Keys and values of earlier packed passes; the layers of every decoder call `update`.

    Attributes:
        rope_deltas: see `cache.KeyValueCache`.
    """

    rope_deltas: Tensor | None = None

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._lengths: list[int] = []
        self._order: Tensor | None = None

    def expect(self, packing: Packing) -> None:
        """Prepares for the tokens that the next pass adds; must be called before the pass."""
        if self._lengths:
            self._order = _interleaved(self._lengths, packing.new).to(packing.device)
        self._lengths = packing.seen

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object) -> tuple[Tensor, Tensor]:
        """Appends a layer's new keys and values to each row and returns all of them.

        Args:
            key: [1, num_kv_heads, S, K].
            value: [1, num_kv_heads, S, K].
            layer: index of the layer.
        """
        if layer in self._layers:
            assert self._order is not None, "`expect` must be called before a pass"
            old_key, old_value = self._layers[layer]
            key = torch.cat([old_key, key], dim=2).index_select(2, self._order)
            value = torch.cat([old_value, value], dim=2).index_select(2, self._order)
        self._layers[layer] = (key, value)
        return key, value


BackboneCache: TypeAlias = KeyValueCache | PackedCache
"""A cache of whole rows, padded or packed."""


def packed_states(
    decoder: "Decoder",
    embeds: Tensor,
    attention_mask: Tensor,
    positions: Tensor,
    cache: "BackboneCache | None",
) -> Tensor:
    """Returns the decoder's states of padded rows, [B, T, D]; zeros at padding.

    Args:
        decoder: the decoder of a backbone.
        embeds: input embeddings of the new positions, [B, T, D].
        attention_mask: True for real tokens, cached positions included, [B, past + T].
        positions: rotary positions, [B, T], or [3, B, T] on three axes.
        cache: keys and values of earlier packed passes.
    """
    num_rows, num_new = embeds.shape[:2]
    is_new = attention_mask[:, -num_new:]
    packing = Packing(is_new.sum(1).tolist(), attention_mask.sum(1).tolist(), embeds.device)
    places = is_new.flatten().nonzero().squeeze(1)
    if isinstance(cache, PackedCache):
        cache.expect(packing)
    states = decoder(
        inputs_embeds=embeds.flatten(0, 1).index_select(0, places).unsqueeze(0),
        position_ids=positions.flatten(-2).index_select(-1, places).unsqueeze(-2),
        past_key_values=cache,
        packing=packing,
    ).last_hidden_state[0]
    empty = states.new_zeros(num_rows * num_new, states.shape[-1])
    return empty.index_copy(0, places, states).unflatten(0, (num_rows, num_new))


def _interleaved(old: list[int], new: list[int]) -> Tensor:
    """Returns the order that interleaves [all old tokens, all new tokens] row by row."""
    parts: list[Tensor] = []
    start_old, start_new = 0, sum(old)
    for num_old, num_new in zip(old, new, strict=True):
        parts += [
            torch.arange(start_old, start_old + num_old),
            torch.arange(start_new, start_new + num_new),
        ]
        start_old, start_new = start_old + num_old, start_new + num_new
    return torch.cat(parts)
