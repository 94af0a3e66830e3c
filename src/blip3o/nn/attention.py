"""Scaled dot-product attention: grouped heads, causal alignment and the choice of the kernel.

Axes: B batch, H heads, T query tokens, S key tokens, K head dim.
"""

import torch
from torch import Tensor
from torch.nn import functional

_SHORT_KEYS = {
    (torch.float32, False): 32,
    (torch.bfloat16, False): 192,
    (torch.bfloat16, True): 192,
}
"""Largest number of keys for which plain products train faster on a CPU than the fused kernel.

The keys are (type of the products, whether there is a mask). The values come from measurements of
forward and backward passes with one thread and head dim 32, given here as products / fused kernel:

- fp32, 128 x 8 heads of 16 x 16 tokens: 6.3 / 9.7 ms with AVX2, 22 / 14 ms with AVX-512; 64 x 64
  tokens take equally long.
- bf16 with AVX512-BF16, where the fused backward pass is slow: 7 / 62 ms and 46 / 176 ms for the
  same two sizes, 56 / 64 to 87 ms for 16 x 8 heads of 192 x 192 tokens.

bf16 with AMX has not been measured. Without gradients the fused kernel is always faster.
"""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Returns softmax(scale query key^T) value, [B, H, T, K].

    Args:
        query: [B, H, T, K].
        key: [B, G, S, K]; H is a multiple of G, and H / G neighboring heads share a key head.
        value: [B, G, S, K].
        mask: True where a query may attend, broadcastable to [B, H, T, S]; or a float tensor that
            is added to the scores.
        is_causal: whether the queries are the last T of the S positions and attend only to keys at
            their own and earlier positions.
        scale: factor of the products; None means 1 / sqrt(K).

    Raises:
        ValueError: if both `mask` and `is_causal` are given.
    """
    if mask is not None and is_causal:
        raise ValueError("give a mask or is_causal, not both")
    if is_causal:
        num_queries, num_keys = query.shape[-2], key.shape[-2]
        if num_queries == 1:
            is_causal = False  # the only query is the last position and attends to all
        elif num_queries != num_keys:
            is_causal, mask = False, _causal_mask(num_queries, num_keys, query.device)
    if prefers_products(query, key, is_masked=is_causal or mask is not None):
        if is_causal:
            mask = _causal_mask(query.shape[-2], key.shape[-2], query.device)
        return attend_by_products(query, key, value, mask=mask, scale=scale)
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def attend_by_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Returns the result of `attend`, computed as two matrix products and a softmax.

    If a boolean mask excludes all keys of a query, the result is the mean of all values.
    """
    if query.shape[1] != key.shape[1]:
        repeats = query.shape[1] // key.shape[1]
        key = key.repeat_interleave(repeats, dim=1)
        value = value.repeat_interleave(repeats, dim=1)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * factor) @ key.transpose(-1, -2)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(-1) @ value


def prefers_products(query: Tensor, key: Tensor, *, is_masked: bool) -> bool:
    """Returns whether plain products train faster than the fused kernel.

    Args:
        query: as for `attend`.
        key: as for `attend`.
        is_masked: whether a mask or causality restricts the attention.
    """
    if query.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    is_autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if is_autocast else query.dtype
    most = _SHORT_KEYS.get((dtype, is_masked), 0)
    return key.shape[-2] <= most and (query.requires_grad or key.requires_grad)


def _causal_mask(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return ones.tril(num_keys - num_queries)
