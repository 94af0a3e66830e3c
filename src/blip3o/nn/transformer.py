"""A compact pre-norm transformer block for this project's own small networks."""

from torch import Tensor, nn

from blip3o.nn.attention import KeyValueCache, attend
from blip3o.nn.mlp import SwiGLU, swiglu_size
from blip3o.nn.rope import RopeTable, rotate_neighbors


class TransformerBlock(nn.Module):
    """Self-attention and SwiGLU, each preceded by a LayerNorm and added to the residual stream.

    Args:
        hidden_size: width (E).
        num_heads: attention heads (H).
        is_causal: whether a token attends only to itself and earlier tokens.
        multiple_of: the feed-forward width is rounded up to a multiple of this.

    Raises:
        ValueError: if the heads do not divide the width.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        is_causal: bool = False,
        multiple_of: int = 16,
    ) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide hidden_size {hidden_size}")
        self.num_heads = num_heads
        self.is_causal = is_causal
        self.norm_attention = nn.LayerNorm(hidden_size)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)
        self.norm_mlp = nn.LayerNorm(hidden_size)
        self.mlp = SwiGLU(hidden_size, swiglu_size(hidden_size, multiple_of))

    def forward(
        self,
        hidden: Tensor,
        *,
        mask: Tensor | None = None,
        rope: RopeTable | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Returns the transformed tokens [B, T, E].

        Args:
            hidden: tokens, [B, T, E].
            mask: True where a query may attend, broadcastable to [B, H, T, S]; a causal block
                combines it with its causal mask.
            rope: rotation table of the T positions, [T, K / 2] or [B, 1, T, K / 2].
            cache: keys and values of earlier tokens, extended in place.
        """
        hidden = hidden + self._attention(self.norm_attention(hidden), mask, rope, cache)
        return hidden + self.mlp(self.norm_mlp(hidden))

    def _attention(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        rope: RopeTable | None,
        cache: KeyValueCache | None,
    ) -> Tensor:
        qkv = self.qkv(hidden).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, H, T, K] each
        if rope is not None:
            query, key = rotate_neighbors(query, rope), rotate_neighbors(key, rope)
        if cache is not None:
            key, value = cache.append(key, value)
        is_causal = self.is_causal
        if is_causal and mask is not None:
            ones = mask.new_ones(query.shape[-2], key.shape[-2])
            mask, is_causal = mask & ones.tril(key.shape[-2] - query.shape[-2]), False
        mixed = attend(query, key, value, mask=mask, is_causal=is_causal)
        return self.out(mixed.transpose(1, 2).flatten(2))
