"""Padding-free passes of a decoder: the real tokens of all rows in one row, one behind the other.

Every layer but attention treats tokens one by one, so leaving out the padding changes nothing
there; attention is told where rows begin. transformers' layers are used as they are: they take
their attention function by name, and hand on to it what the decoder is called with. Axes: B rows,
T new positions, S real tokens of all rows, H heads, K head dim, D width.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from blip3o.models.protocols import Backbone, BackboneCache, Decoder


@dataclasses.dataclass(frozen=True)
class Packing:
    """Which of the packed tokens belong together.

    Args:
        new: new tokens of each row.
        seen: tokens that a row's new ones may look at, itself and earlier ones; at least `new`.
        device: where the pass is computed.
    """

    new: list[int]
    seen: list[int]
    device: torch.device

    @functools.cached_property
    def _masks(self) -> list[Tensor | None]:
        """Who sees whom, [new, seen] of each row; None where all tokens are new."""
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
            value: likewise.
            scale: factor of the products; None for one over the root of K.
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
    """Keys and values of earlier packed passes; transformers' layers call `update`.

    Attributes:
        rope_deltas: see `cache.KeyValueCache`.
    """

    rope_deltas: Tensor | None = None

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._lengths: list[int] = []
        self._order: Tensor | None = None

    def expect(self, packing: Packing) -> None:
        """Is told, before a pass, what it adds.

        Args:
            packing: of the pass.
        """
        if self._lengths:
            self._order = _interleaved(self._lengths, packing.new).to(packing.device)
        self._lengths = packing.seen

    def update(
        self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Adds a layer's new keys and values behind the row's earlier ones and returns all.

        Args:
            key: [1, num_kv_heads, S, K].
            value: likewise.
            layer: index of the layer.
        """
        if layer in self._layers:
            assert self._order is not None, "`expect` comes before a pass"
            old_key, old_value = self._layers[layer]
            key = torch.cat([old_key, key], dim=2).index_select(2, self._order)
            value = torch.cat([old_value, value], dim=2).index_select(2, self._order)
        self._layers[layer] = (key, value)
        return key, value


def enable(backbone: "Backbone") -> None:
    """Lets a backbone leave out padding wherever a batch of a training has some.

    Args:
        backbone: changed in place.
    """
    backbone.padding_free = True


def is_packed(
    backbone: "Backbone", attention_mask: Tensor, cache: "BackboneCache | None" = None
) -> bool:
    """Whether a pass leaves out padding; one that goes on from another does what that one did.

    Args:
        backbone: see `enable`.
        attention_mask: True for real tokens, [B, T].
        cache: of an earlier pass.
    """
    if cache is not None:
        return isinstance(cache, PackedCache)
    return backbone.padding_free and not bool(attention_mask.all())


def packed_states(
    decoder: "Decoder",
    embeds: Tensor,
    attention_mask: Tensor,
    positions: Tensor,
    cache: "BackboneCache | None",
) -> Tensor:
    """Returns the decoder's states of padded rows, [B, T, D]; zeros where there is padding.

    Args:
        decoder: of a backbone that was enabled.
        embeds: input embeddings of the new positions, [B, T, D].
        attention_mask: True for real tokens, earlier ones included, [B, past + T].
        positions: rotary positions, [B, T], or [3, B, T] on three axes.
        cache: keys and values of earlier packed passes; see `is_packed`.
    """
    num_rows, num_new = embeds.shape[:2]
    is_new = attention_mask[:, -num_new:]
    packing = Packing(is_new.sum(1).tolist(), attention_mask.sum(1).tolist(), embeds.device)
    places = is_new.flatten().nonzero().squeeze(1)
    if isinstance(cache, PackedCache):
        cache.expect(packing)
    states = decoder(
        inputs_embeds=embeds.flatten(0, 1).index_select(0, places).unsqueeze(0),
        # Of four axes, so that no mask is made; rows keep themselves apart.
        attention_mask=attention_mask.new_ones(1, 1, 1, 1),
        position_ids=positions.flatten(-2).index_select(-1, places).unsqueeze(-2),
        past_key_values=cache,
        use_cache=cache is not None,
        packing=packing,
    ).last_hidden_state[0]
    empty = states.new_zeros(num_rows * num_new, states.shape[-1])
    return empty.index_copy(0, places, states).unflatten(0, (num_rows, num_new))


def _interleaved(old: list[int], new: list[int]) -> Tensor:
    """Returns where, among all old tokens and then all new ones, each row's tokens are."""
    parts, start_old, start_new = [], 0, sum(old)
    for num_old, num_new in zip(old, new, strict=True):
        parts += [
            torch.arange(start_old, start_old + num_old),
            torch.arange(start_new, start_new + num_new),
        ]
        start_old, start_new = start_old + num_old, start_new + num_new
    return torch.cat(parts)
