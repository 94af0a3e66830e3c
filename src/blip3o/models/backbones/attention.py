"""Decoders of transformers: their attention function, and their modules for a pass of one token."""

from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from blip3o.models.backbones.packed import Packing
from blip3o.models.backbones.ragged import RowBatch
from blip3o.nn.attention import attend, prefers_products
from blip3o.nn.token_step import StepLayer, StepParts

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


def step_parts(decoder: Any) -> StepParts:  # noqa: ANN401  (their classes share only names)
    """Returns the modules and sizes of a decoder of transformers for a `TokenStep`.

    Args:
        decoder: one of the Llama family, as all that `with_attention` returned.
    """
    config, weight = decoder.config, decoder.embed_tokens.weight

    def rope(positions: Tensor) -> tuple[Tensor, Tensor]:
        # A decoder with three axes expands them itself, but its rotary embedding does not.
        axes = (3, 1, -1) if hasattr(decoder.rotary_emb, "mrope_section") else (1, -1)
        cos, sin = decoder.rotary_emb(weight, positions.expand(axes))
        half = cos.shape[-1] // 2
        return cos[0, :, :half], sin[0, :, :half]

    return StepParts(
        layers=[_step_layer(layer) for layer in decoder.layers],
        norm=decoder.norm.weight,
        norm_eps=config.rms_norm_eps,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        rope=rope,
    )


def _step_layer(layer: Any) -> StepLayer:  # noqa: ANN401  (as above)
    attention, mlp = layer.self_attn, layer.mlp
    has_norms = hasattr(attention, "q_norm")
    return StepLayer(
        norm_attention=layer.input_layernorm.weight,
        heads=(attention.q_proj, attention.k_proj, attention.v_proj),
        norm_heads=(attention.q_norm.weight, attention.k_norm.weight) if has_norms else None,
        out=attention.o_proj,
        norm_mlp=layer.post_attention_layernorm.weight,
        gate=mlp.gate_proj,
        up=mlp.up_proj,
        down=mlp.down_proj,
    )
