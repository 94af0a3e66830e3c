"""One layer of NextDiT: gated self- and cross-attention that share an output, then SwiGLU."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from blip3o.models.dit.nextdit_ends import VECTOR_NORM_EPS
from blip3o.nn.attention import attend
from blip3o.nn.linear import VectorLinear
from blip3o.nn.mlp import SwiGLU, swiglu_size
from blip3o.nn.norm import RMSNorm
from blip3o.nn.rope import RopeTable, rotate_neighbors

if TYPE_CHECKING:
    from blip3o.models.dit.nextdit import NextDiTConfig

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of an attention, [B, num_kv_heads, S, K] each."""


class NextDiTBlock(nn.Module):
    """One transformer layer.

    Args:
        config: sizes.
    """

    def __init__(self, config: "NextDiTConfig") -> None:
        super().__init__()
        width, eps = config.hidden_size, config.norm_eps
        inner = swiglu_size(width, config.multiple_of, config.ffn_dim_multiplier)
        self.gate = nn.Parameter(torch.zeros(config.num_heads))
        self.norm1 = _ModulatedNorm(width, config.vector_size, eps)
        self.attn1 = _Projections(config)
        self.norm1_context = RMSNorm(width, eps)
        self.attn2 = _CrossProjections(config)
        self.norm2 = RMSNorm(width, eps)
        self.ffn_norm1 = RMSNorm(width, eps)
        self.feed_forward = SwiGLU(width, inner, silu_in_fp32=True)
        self.ffn_norm2 = RMSNorm(width, eps)

    def forward(
        self,
        hidden: Tensor,
        vector: Tensor,
        rope: RopeTable,
        context: Tensor | None = None,
        cross: KeyValue | None = None,
    ) -> Tensor:
        """Returns the transformed tokens, [B, N, E].

        Args:
            hidden: image tokens, [B, N, E].
            vector: conditioning vector after its SiLU, [B, vector_size].
            rope: rotation of the image tokens, [N, 1, K / 2].
            context: projected condition, [B, Q, E]; needed where `cross` is not given.
            cross: what `cross_key_value(context)` returned.
        """
        if cross is None:
            if context is None:
                raise ValueError("a layer needs the context or its keys and values")
            cross = self.cross_key_value(context)
        changes = self.norm1.linear(vector).unsqueeze(1).chunk(4, dim=-1)
        attention_scale, attention_gate, ffn_scale, ffn_gate = changes
        normed = self.norm1.norm(hidden) * (1 + attention_scale)
        mixed = self._attention(normed, rope, cross)
        hidden = torch.addcmul(hidden, attention_gate.tanh(), self.norm2(mixed))
        fed = self.feed_forward(self.ffn_norm1(hidden) * (1 + ffn_scale))
        return torch.addcmul(hidden, ffn_gate.tanh(), self.ffn_norm2(fed))

    def cross_key_value(self, context: Tensor) -> KeyValue:
        """Returns the cross-attention's keys and values of a projected condition [B, Q, E]."""
        normed = self.norm1_context(context)
        return self.attn2.key(normed).transpose(1, 2), self.attn2.value(normed).transpose(1, 2)

    def cross_null(self, value: Tensor) -> Tensor:
        """Returns what a condition of equal tokens adds to each token's attention, [H, K].

        Args:
            value: the cross-attention's values of one such token, [1, num_kv_heads, 1, K].
        """
        values = value[0, :, 0]
        heads = values.repeat_interleave(len(self.gate) // len(values), dim=0)
        return self.gate.tanh().unsqueeze(-1) * heads

    def sampling_scales(self, vectors: Tensor) -> Tensor:
        """Returns the norms' weights times scale, gate, scale, gate of each row, [..., 4, E].

        Args:
            vectors: conditioning vectors, after their SiLU, [..., vector_size].
        """
        attention_scale, attention_gate, ffn_scale, ffn_gate = self.norm1.linear(vectors).chunk(
            4, dim=-1
        )
        scales = [
            self.norm1.norm.weight * (1 + attention_scale),
            self.norm2.weight * attention_gate.tanh(),
            self.ffn_norm1.weight * (1 + ffn_scale),
            self.ffn_norm2.weight * ffn_gate.tanh(),
        ]
        return torch.stack(scales, dim=-2)

    def sample(self, layer: Callable[..., Tensor], *inputs: Any) -> Tensor:  # noqa: ANN401
        """Returns what a function makes of this block, so that its weights can be fetched before.

        Args:
            layer: `nextdit_sampling.sample_layer`, or the same compiled.
            inputs: its arguments after the block.
        """
        return layer(self, *inputs)

    def _attention(self, normed: Tensor, rope: RopeTable, cross: KeyValue) -> Tensor:
        query = rotate_neighbors(self.attn1.query(normed), rope).transpose(1, 2)
        key = rotate_neighbors(self.attn1.key(normed), rope).transpose(1, 2)
        own = attend(query, key, self.attn1.value(normed).transpose(1, 2))
        # The released network rotates the cross-attention's queries, but not its keys.
        query = rotate_neighbors(self.attn2.query(normed), rope).transpose(1, 2)
        other = attend(query, *cross)
        mixed = torch.addcmul(own, self.gate.tanh().view(-1, 1, 1), other)  # [B, H, N, K]
        return self.attn2.to_out[0](mixed.transpose(1, 2).flatten(2))


class _ModulatedNorm(nn.Module):
    """An RMS norm and the layer that turns the conditioning vector into scales and gates."""

    def __init__(self, hidden_size: int, vector_size: int, eps: float) -> None:
        super().__init__()
        self.linear = VectorLinear(vector_size, 4 * hidden_size)
        self.norm = RMSNorm(hidden_size, eps)


class _Projections(nn.Module):
    """Query, key and value projections; queries and keys are normalized before heads are split."""

    def __init__(self, config: "NextDiTConfig") -> None:
        super().__init__()
        width = config.hidden_size
        self.head_dim = width // config.num_heads
        key_width = self.head_dim * config.kv_heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, key_width, bias=False)
        self.to_v = nn.Linear(width, key_width, bias=False)
        self.norm_q = nn.LayerNorm(width, eps=VECTOR_NORM_EPS)
        self.norm_k = nn.LayerNorm(key_width, eps=VECTOR_NORM_EPS)

    def query(self, hidden: Tensor) -> Tensor:
        return self.norm_q(self.to_q(hidden)).unflatten(-1, (-1, self.head_dim))

    def key(self, hidden: Tensor) -> Tensor:
        return self.norm_k(self.to_k(hidden)).unflatten(-1, (-1, self.head_dim))

    def value(self, hidden: Tensor) -> Tensor:
        return self.to_v(hidden).unflatten(-1, (-1, self.head_dim))


class _CrossProjections(_Projections):
    """Also holds the output projection, which self- and cross-attention share."""

    def __init__(self, config: "NextDiTConfig") -> None:
        super().__init__(config)
        width = config.hidden_size
        self.to_out = nn.ModuleList([nn.Linear(width, width, bias=False)])
