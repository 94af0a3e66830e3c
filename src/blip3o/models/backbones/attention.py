"""The attention function of backbones, which transformers' layers look up by name."""

from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from blip3o.models.backbones.packed import Packing
from blip3o.models.backbones.ragged import RowBatch
from blip3o.nn.attention import attend, prefers_products

if TYPE_CHECKING:
    from transformers.modeling_utils import PreTrainedModel

_NAME = "blip3o"


DecoderT = TypeVar("DecoderT", bound="PreTrainedModel")


def with_attention(decoder: DecoderT) -> DecoderT:
    """Returns a decoder of transformers that attends with `attention`.

    It makes no masks and caches of its own.

    Args:
        decoder: changed in place.
    """
    from transformers import AttentionInterface

    # No mask function has this name, so transformers takes masks as they are and builds none.
    AttentionInterface.register(_NAME, attention)
    decoder.config._attn_implementation = _NAME
    decoder.config.use_cache = False
    return decoder


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | RowBatch | None = None,
    scaling: float | None = None,
    **others: Any,  # noqa: ANN401  (passed through to transformers)
) -> tuple[Tensor, Tensor | None]:
    """Returns the mixed values [B, T, H, K], and None in place of attention weights.

    Args:
        module: the layer.
        query: [B, H, T, K].
        key: [B, G, S, K].
        value: [B, G, S, K].
        attention_mask: True where a query may attend, [B, 1, T, S]; None for plain causality.
        packing: set in a padding-free pass and in a pass whose rows keep their own keys and values.
        scaling: factor of the query-key products.
        others: passed through to transformers' function.
    """
    if packing is not None:
        return packing.attend(query, key, value, scaling), None
    if prefers_products(query, key, is_masked=True):
        is_causal = attention_mask is None
        mixed = attend(query, key, value, mask=attention_mask, is_causal=is_causal, scale=scaling)
        return mixed.transpose(1, 2).contiguous(), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **others
    )
