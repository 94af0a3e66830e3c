"""A compact pre-norm transformer block for this project's own small networks."""

from torch import Tensor, nn

from blip3o.nn.attention import attend
from blip3o.nn.mlp import SwiGLU, swiglu_size


class TransformerBlock(nn.Module):
    """Self-attention and SwiGLU, each preceded by a LayerNorm and added to the residual stream.

    Args:
        hidden_size: width (E).
        num_heads: attention heads (H).

    Raises:
        ValueError: if the heads do not divide the width.
    """

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide hidden_size {hidden_size}")
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(hidden_size)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)
        self.norm_mlp = nn.LayerNorm(hidden_size)
        self.mlp = SwiGLU(hidden_size, swiglu_size(hidden_size, multiple_of=16))

    def forward(self, hidden: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Returns the transformed tokens [B, T, E].

        Args:
            hidden: tokens, [B, T, E].
            mask: True where a query may attend, broadcastable to [B, H, T, T].
        """
        qkv = self.qkv(self.norm_attention(hidden)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, H, T, K] each
        mixed = attend(query, key, value, mask=mask)
        hidden = hidden + self.out(mixed.transpose(1, 2).flatten(2))
        return hidden + self.mlp(self.norm_mlp(hidden))
