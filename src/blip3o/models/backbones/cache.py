"""Keys and values of earlier positions. Axes: B rows, G key/value heads, T tokens, K head dim."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers.models.llama.modeling_llama import LlamaModel
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

    from blip3o.nn.decoder import CausalDecoder

    Decoder = CausalDecoder | LlamaModel | Qwen3Model | Qwen2_5_VLTextModel

KeyValues = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of each layer, [B, G, T, K]; plans keep prompts in this form."""


class KeyValueCache:
    """Keys and values of padded rows.

    Layers of transformers call `update`; our own decoder calls `past` and `keep`.

    Args:
        key_values: of the first tokens. They are not copied, and the cache never changes them.

    Attributes:
        rope_deltas: offset of each row's rotary positions from its count of tokens, [B]; negative
            after images whose grids span fewer positions than they have tokens; None for 0.
    """

    rope_deltas: Tensor | None = None

    def __init__(self, key_values: Iterable[tuple[Tensor, Tensor]] = ()) -> None:
        self._layers = list(key_values)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of each row, padding included."""
        return self._layers[0][0].shape[2] if self._layers else 0

    def key_values(self) -> KeyValues:
        """Returns the keys and values of every layer; not copied."""
        return tuple(self._layers)

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object) -> tuple[Tensor, Tensor]:
        """Appends a layer's new keys and values and returns all of them.

        Args:
            key: [B, G, T, K].
            value: [B, G, T, K].
            layer: index of the layer.
            _: further arguments that older releases of transformers pass.
        """
        past = self.past(layer)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        self.keep(layer, (key, value))
        return key, value

    def past(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Returns a layer's keys and values; None if no pass filled it yet."""
        return self._layers[layer] if layer < len(self._layers) else None

    def keep(self, layer: int, key_value: tuple[Tensor, Tensor]) -> None:
        """Replaces a layer's keys and values."""
        self._layers[layer : layer + 1] = [key_value]
