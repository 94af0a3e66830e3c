"""Decoding of rows that differ in length and progress: each pass adds one token to every row.

All layers except attention process tokens independently, so the new tokens of all rows go through
them as one row. Attention is computed row by row, without padded keys and without a mask that
depends on other rows. A row's result therefore depends on its batch only through the number of
tokens in a pass, and the caller takes only numbers that give the same bits.

`TokenStep` computes such a pass with few operations. The decoder's own layers compute the same;
they serve decoders whose weights are elsewhere between two passes. Axes: R rows, G key/value heads,
H heads, K head dim, L layers, D width.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from blip3o.models.backbones.cache import KeyValues
from blip3o.nn.token_step import TokenStep

if TYPE_CHECKING:
    from blip3o.models.backbones.cache import Decoder

_BLOCK = 64
"""A row's memory grows by this many tokens or by an eighth of its tokens, whichever is more."""


class RowCache:
    """Keys and values of one row, in a memory that is longer than the row.

    Args:
        memory: keys and values of the layers in turn, [2 L, 1, G, S, K].
        num_tokens: number of tokens in the row, at most S.
        rope_delta: offset of the row's rotary positions from its count of tokens.

    Attributes:
        num_tokens: number of tokens in the row.
    """

    def __init__(self, memory: Tensor, num_tokens: int, rope_delta: int = 0) -> None:
        self._memory = memory
        self._rope_delta = rope_delta
        self.num_tokens = num_tokens

    @classmethod
    def of(
        cls,
        key_values: KeyValues,
        rope_delta: int = 0,
        *,
        row: int = 0,
        places: Tensor | None = None,
    ) -> "RowCache":
        """Returns a row of a cache; its keys and values are copied.

        Args:
            key_values: keys and values of each layer, [B, G, T, K] each.
            rope_delta: as for the class.
            row: index of the row.
            places: places of the row's tokens in the cache, [S]; None for all.
        """
        own = [side[row : row + 1] for pair in key_values for side in pair]
        num_tokens = own[0].shape[2] if places is None else len(places)
        shape = list(own[0].shape)
        shape[2] = num_tokens + _room(num_tokens)
        memory = own[0].new_zeros(len(own), *shape)
        for kept, side in zip(memory, own, strict=True):
            kept[:, :, :num_tokens] = side if places is None else side.index_select(2, places)
        return cls(memory, num_tokens, rope_delta)

    def key_values(self) -> KeyValues:
        """Returns keys and values of each layer, [1, G, T, K] each; not copied."""
        sides = self._memory[:, :, :, : self.num_tokens].unbind(0)
        return tuple(zip(sides[::2], sides[1::2], strict=True))

    @property
    def position(self) -> int:
        """Rotary position of the next token."""
        return self.num_tokens + self._rope_delta

    def fork(self) -> "RowCache":
        """Returns a second row with the same tokens; it copies them when it grows."""
        own = self._memory[:, :, :, : self.num_tokens]
        return RowCache(own, self.num_tokens, self._rope_delta)

    def grown(self) -> Tensor:
        """Returns keys and values with a place for the next token, [2 L, 1, G, T + 1, K].

        The token counts only after `advance`, so a failed pass can be repeated.
        """
        if self._memory.shape[3] == self.num_tokens:
            room = (0, 0, 0, _room(self.num_tokens))
            self._memory = functional.pad(self._memory, room)
        return self._memory[:, :, :, : self.num_tokens + 1]

    def advance(self) -> None:
        """Counts the token that was written to the last place of `grown`."""
        self.num_tokens += 1


def _room(num_tokens: int) -> int:
    """Returns the number of free places of a memory that is filled or grows."""
    return max(_BLOCK, num_tokens // 8)


class RowBatch:
    """Rows that get one token each in a pass.

    Args:
        rows: one or more rows.
        size: number of tokens in the pass; tokens beyond the rows are padding.
    """

    def __init__(self, rows: Sequence[RowCache], size: int) -> None:
        self._rows = rows
        self._size = size
        self._grown: list[Tensor] = []
        self._seen: list[tuple[Tensor, Tensor]] = []

    def states(self, decoder: "Decoder", embeds: Tensor) -> Tensor:
        """Returns the decoder's states of the new tokens, [size, 1, D], by its own layers.

        Args:
            decoder: the decoder of a backbone.
            embeds: input embeddings, [size, 1, D].
        """
        self._grown = [row.grown() for row in self._rows]
        states = decoder(
            inputs_embeds=embeds.transpose(0, 1),
            position_ids=self._positions(embeds.device).unsqueeze(0),
            past_key_values=self,
            packing=self,
        ).last_hidden_state
        self._count()
        return states.transpose(0, 1)

    def fast_states(
        self, step: TokenStep, embeds: Tensor, trace: list[Tensor] | None = None
    ) -> Tensor:
        """Returns the states of the new tokens, [size, D], by a fast pass.

        Args:
            step: the pass of the decoder.
            embeds: input embeddings, [size, D].
            trace: see `TokenStep`.
        """
        grown = [row.grown() for row in self._rows]
        states = step(embeds, self._positions(embeds.device), grown, trace)
        self._count()
        return states

    def _positions(self, device: torch.device) -> Tensor:
        """Returns the rotary positions of the new tokens, [size]."""
        positions = [row.position for row in self._rows]
        positions += [0] * (self._size - len(positions))
        return torch.tensor(positions, device=device)

    def _count(self) -> None:
        for row in self._rows:
            row.advance()

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object) -> tuple[Tensor, Tensor]:
        """Adds a layer's new keys and values to the rows; called by the decoder's layers.

        Args:
            key: [1, G, size, K].
            value: [1, G, size, K].
            layer: index of the layer.
        """
        pairs = [(grown[2 * layer], grown[2 * layer + 1]) for grown in self._grown]
        for place, (keys, values) in enumerate(pairs):
            keys[:, :, -1] = key[:, :, place]
            values[:, :, -1] = value[:, :, place]
        self._seen = pairs
        return key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Returns the attention of each row to its own tokens, [1, size, H, K].

        Args:
            query: [1, H, size, K].
            key: keys of the new tokens, which the rows already hold.
            value: values of the new tokens, which the rows already hold.
            scale: factor of the query-key products; None for 1 / sqrt(K).
        """
        is_grouped = query.shape[1] != key.shape[1]
        mixed = [
            functional.scaled_dot_product_attention(one, *seen, scale=scale, enable_gqa=is_grouped)
            for one, seen in zip(query.split(1, 2), self._seen, strict=False)
        ]
        if len(mixed) < self._size:
            mixed.append(torch.zeros_like(query[:, :, len(mixed) :]))
        return torch.cat(mixed, dim=2).transpose(1, 2)
