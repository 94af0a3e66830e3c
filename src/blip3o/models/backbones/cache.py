"""The key/value cache of a backbone. This module imports transformers, so it is imported lazily."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicCache

if TYPE_CHECKING:
    from transformers.models.llama.modeling_llama import LlamaModel
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

    Decoder = LlamaModel | Qwen3Model | Qwen2_5_VLTextModel


class KeyValueCache(DynamicCache):
    """Keys and values of earlier positions of padded rows.

    Attributes:
        rope_deltas: offset of each row's rotary positions from its count of tokens, [B]; negative
            after images whose grids span fewer positions than they have tokens; None for 0.
    """

    rope_deltas: Tensor | None = None

    def key_values(self) -> list[Tensor]:
        """Returns a copy of the keys and values of every layer, [2, B, num_kv_heads, T, K] each."""
        layers = [one for one in self.layers if isinstance(one, CacheLayerMixin)]
        pairs = [(one.keys, one.values) for one in layers]
        return [torch.stack([k, v]) for k, v in pairs if k is not None and v is not None]
