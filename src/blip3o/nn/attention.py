"""Scaled dot-product attention for every network of the package, and a static key/value cache.

One function so that there is one place for grouped heads, causal alignment and the choice of the
kernel. Axes: B batch, H heads, T query tokens, S key tokens, K head dim.
"""

import torch
from torch import Tensor
from torch.nn import functional

_SHORT_KEYS = {torch.float32: 32, torch.bfloat16: 64}
"""Up to this many keys, plain products train faster on a CPU than the fused kernel does.

Measured with one thread, 128 rows, 8 heads of 32, forward and backward. In fp32 16 x 16 tokens take
6.3 ms against 9.7 ms, 64 x 64 as long as fused. In bf16 (AVX512-BF16) the fused kernel's backward
pass is slow: 16 x 16 tokens take 11 ms against 100 ms, 64 x 64 take 36 ms against 185 ms. The fused
kernel wins wherever no gradient is asked.
"""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """Returns softmax(query key^T / sqrt(K)) value, [B, H, T, K].

    Args:
        query: [B, H, T, K].
        key: [B, G, S, K]; H is a multiple of G, and each key head serves H / G neighbor heads.
        value: [B, G, S, K].
        mask: True where a query may look, broadcastable to [B, H, T, S]; or a float tensor that
            is added to the scores.
        is_causal: the T queries are the last T of the S positions, and none looks ahead.

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
    if mask is None and not is_causal and _prefer_products(query, key):
        return attend_by_products(query, key, value)
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=is_causal,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def attend_by_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Returns the same as `attend` without mask, as two matrix products and a softmax."""
    if query.shape[1] != key.shape[1]:
        repeats = query.shape[1] // key.shape[1]
        key = key.repeat_interleave(repeats, dim=1)
        value = value.repeat_interleave(repeats, dim=1)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return scores.softmax(-1) @ value


def _prefer_products(query: Tensor, key: Tensor) -> bool:
    return (
        query.device.type == "cpu"
        and key.shape[-2] <= _SHORT_KEYS.get(query.dtype, 0)
        and torch.is_grad_enabled()
        and (query.requires_grad or key.requires_grad)
    )


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
