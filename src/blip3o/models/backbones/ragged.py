"""Decoding of rows that differ in length and progress: each pass adds one token to every row.

All layers except attention process tokens independently, so the new tokens of all rows go through
them as one row. Attention is computed row by row, without padded keys and without a mask that
depends on other rows. A row's result therefore depends on its batch only through the number of
tokens in a pass, and the caller keeps this number constant. Axes: R rows, G key/value heads, H
heads, K head dim, D width.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from blip3o.models.backbones.cache import KeyValues

if TYPE_CHECKING:
    from blip3o.models.backbones.cache import Decoder

_BLOCK = 64
"""A row's memory grows by this many tokens or by an eighth of its tokens, whichever is more."""


class RowCache:
    """Keys and values of one row, with room to grow.

    Args:
        layers: keys and values of each layer, [2, 1, G, T, K].
        rope_delta: offset of the row's rotary positions from its count of tokens.

    Attributes:
        num_tokens: number of tokens in the row.
    """

    def __init__(self, layers: Sequence[Tensor], rope_delta: int = 0) -> None:
        self._layers = list(layers)
        self._rope_delta = rope_delta
        self.num_tokens = layers[0].shape[3]

    @classmethod
    def of(cls, key_values: KeyValues, rope_delta: int = 0) -> "RowCache":
        """Returns the row with the keys and values of a cache of one row; they are copied."""
        return cls([torch.stack(pair) for pair in key_values], rope_delta)

    def key_values(self) -> KeyValues:
        """Returns keys and values of each layer, [1, G, T, K] each; not copied."""
        return tuple((both[0], both[1]) for both in self.layers())

    @property
    def position(self) -> int:
        """Rotary position of the next token."""
        return self.num_tokens + self._rope_delta

    def layers(self) -> list[Tensor]:
        """Returns keys and values of each layer, [2, 1, G, T, K]; not copied."""
        return [layer[:, :, :, : self.num_tokens] for layer in self._layers]

    def fork(self) -> "RowCache":
        """Returns a second row with the same tokens; it copies them when it grows."""
        return RowCache(self.layers(), self._rope_delta)

    def append(self, layer: int, key_value: Tensor) -> tuple[Tensor, Tensor]:
        """Returns a layer's keys and values with those of the next token, [1, G, T + 1, K] each.

        The token counts only after `advance`, so a failed pass can be repeated.

        Args:
            layer: index of the layer.
            key_value: [2, 1, G, K].
        """
        known = self._layers[layer]
        if known.shape[3] <= self.num_tokens:
            room = max(_BLOCK, self.num_tokens // 8)
            known = functional.pad(known, (0, 0, 0, room))
            self._layers[layer] = known
        known[:, :, :, self.num_tokens] = key_value
        key, value = known[:, :, :, : self.num_tokens + 1].unbind(0)
        return key, value

    def advance(self) -> None:
        """Counts the token that was appended to every layer."""
        self.num_tokens += 1


class RowBatch:
    """Rows that get one token each in a pass; the decoder's layers use it as cache and attention.

    Args:
        rows: one or more rows.
        size: number of tokens in the pass; tokens beyond the rows are padding.
    """

    def __init__(self, rows: Sequence[RowCache], size: int) -> None:
        self._rows = rows
        self._size = size
        self._seen: list[tuple[Tensor, Tensor]] = []

    def states(self, decoder: "Decoder", embeds: Tensor) -> Tensor:
        """Returns the decoder's states of the new tokens, [size, 1, D].

        Args:
            decoder: the decoder of a backbone.
            embeds: input embeddings, [size, 1, D].
        """
        positions = [row.position for row in self._rows]
        positions += [0] * (self._size - len(positions))
        states = decoder(
            inputs_embeds=embeds.transpose(0, 1),
            position_ids=torch.tensor([positions], device=embeds.device),
            past_key_values=self,
            packing=self,
        ).last_hidden_state
        for row in self._rows:
            row.advance()
        return states.transpose(0, 1)

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object) -> tuple[Tensor, Tensor]:
        """Adds a layer's new keys and values to the rows; called by the decoder's layers.

        Args:
            key: [1, G, size, K].
            value: [1, G, size, K].
            layer: index of the layer.
        """
        new = torch.stack([key, value]).unbind(3)
        self._seen = [row.append(layer, one) for row, one in zip(self._rows, new, strict=False)]
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
