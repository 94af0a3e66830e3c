"""Scaled dot-product attention for every network of the package, and a static key/value cache.

One function so that there is one place for grouped heads, causal alignment and the choice of the
kernel. Axes: B batch, H heads, T query tokens, S key tokens, K head dim.
"""

import torch
from torch import Tensor
from torch.nn import functional

_SHORT_KEYS = {
    (torch.float32, False): 32,
    (torch.bfloat16, False): 192,
    (torch.bfloat16, True): 192,
}
"""Up to this many keys, plain products train faster on a CPU than the fused kernel does.

By the type of the products and whether there is a mask. Measured with one thread, forward and
backward, heads of 32: in fp32 128 x 8 times 16 x 16 tokens take 6.3 ms against 9.7 ms on a CPU with
AVX2 (but 22 against 14 on one with AVX-512), 64 x 64 as long as fused. In bf16 with AVX512-BF16 the
fused kernel's backward pass is slow: 7 against 62 ms, 46 against 176, 192 x 192 (16 x 8 times) 56
against 64 to 87. bf16 with AMX has not been measured. The fused kernel wins wherever no gradient is
asked.
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
        key: [B, G, S, K]; H is a multiple of G, and each key head serves H / G neighbor heads.
        value: [B, G, S, K].
        mask: True where a query may look, broadcastable to [B, H, T, S]; or a float tensor that
            is added to the scores.
        is_causal: the T queries are the last T of the S positions, and none looks ahead.
        scale: factor of the products; None for 1 / sqrt(K).

    Raises:
        ValueError: if both `mask` and `is_causal` are given.
    """
    if mask is not None and is_causal:
        raise ValueError("give a mask or is_causal, not both")
    if is_causal:
        num_queries, num_keys = query.shape[-2], key.shape[-2]
        if num_queries == 1:
            is_causal = False  # the one query is the last position: it sees everything
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
    """Returns the same as `attend`, as two matrix products and a softmax.

    Where a mask lets a query see nothing, the result is the mean of all values.
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
    """Whether products are the faster way to train through this attention.

    Args:
        query: as for `attend`.
        key: likewise.
        is_masked: whether there is a mask, or causality.
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


class KeyValueCache:
    """Keys and values of one attention layer in buffers that are allocated once.

    Fixed buffers keep memory flat over a generation and addresses stable for CUDA graphs.

    Args:
        batch_size: rows (B).
        num_kv_heads: key and value heads (G).
        max_tokens: positions there is room for.
        head_dim: width of a head (K).
        device: where the buffers are.
        dtype: their type.
    """

    def __init__(
        self,
        batch_size: int,
        num_kv_heads: int,
        max_tokens: int,
        head_dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (batch_size, num_kv_heads, max_tokens, head_dim)
        self._keys = torch.zeros(shape, device=device, dtype=dtype)
        self._values = torch.zeros(shape, device=device, dtype=dtype)
        self.num_tokens = 0

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores new positions and returns all keys and values so far, [B, G, past + T, K] each.

        Args:
            key: keys of the new positions, [B, G, T, K].
            value: their values, [B, G, T, K].

        Raises:
            ValueError: if there is no room left.
        """
        start, stop = self.num_tokens, self.num_tokens + key.shape[-2]
        if stop > self._keys.shape[-2]:
            raise ValueError(
                f"the cache has room for {self._keys.shape[-2]} positions, {stop} are needed"
            )
        self._keys[:, :, start:stop] = key
        self._values[:, :, start:stop] = value
        self.num_tokens = stop
        return self._keys[:, :, :stop], self._values[:, :, :stop]

    def crop(self, num_tokens: int) -> None:
        """Forgets every position from `num_tokens` on; the buffers stay."""
        self.num_tokens = min(self.num_tokens, num_tokens)
