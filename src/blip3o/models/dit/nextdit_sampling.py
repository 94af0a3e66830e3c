"""The fast path of NextDiT: everything that is constant over the steps is computed before them.

It computes the same function as `NextDiT.velocity`, for given conditions and known noise levels.
Axes: B images of P conditions (B = P * images of each), S noise levels, M image tokens, E width, H
heads, K head dim. With guidance, a batch holds [null, conditional]: 2 B rows.

- Keys and values of the condition do not depend on the noise level. They are computed once, and
  all images of a condition share one copy.
- The empty condition is zeros: one token, repeated for any number of tokens and layers, and the
  keys are not rotated. So every query of the null half averages equal values, and its
  cross-attention is one constant vector.
- Scales and gates depend only on the noise level and the condition. One product computes them for
  many levels, with the weights of the norms included. Each condition and the null half have a
  product of their own, because the rounding of a product depends on its number of rows: in a shared
  product, an image would depend on the other images of its batch.
- Both halves share the embedding of the noisy tokens and of the reference.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from blip3o.models.dit.nextdit import KeyValue, NextDiT, NextDiTBlock, check_shapes, timesteps
from blip3o.nn.attention import attend
from blip3o.nn.rope import RopeTable, rotate_neighbors

_LEVELS_AT_ONCE = 32
"""Noise levels whose scales are kept: 20 MB for each row of the released model in fp32."""


class CrossContext(NamedTuple):
    """The condition in the form that the cross-attention of one layer uses.

    Args:
        key_value: keys and values, [P, num_kv_heads, Q, K] each.
        mask: True for the tokens to attend to, [P, 1, 1, Q]; None for all.
        null: term that the empty condition adds to the attention of each token, [H, K]; None
            without guidance.
    """

    key_value: KeyValue
    mask: Tensor | None
    null: Tensor | None


LayerFunction = Callable[[NextDiTBlock, Tensor, Tensor, RopeTable, CrossContext], Tensor]
"""The type of `sample_layer`, which may be compiled."""


@dataclasses.dataclass(frozen=True)
class _Scales:
    """The modulation of the tokens from one noise level on; R = P, or P + 1 with the null row.

    Args:
        first: index of the first noise level.
        layers: see `sample_layer`, [S, layers, R, 4, E].
        out: the output layer's scale, [S, R, E].
    """

    first: int
    layers: Tensor
    out: Tensor


class PreparedNextDiT:
    """A NextDiT prepared for given conditions and noise levels.

    It works in place and needs `torch.no_grad`, so it cannot be trained. The weights of the network
    must not change while it is in use.

    Args:
        dit: the network.
        condition: states of the backbone for P prompts, [P, Q, D], or [P, layers, Q, D].
        sigmas: the noise level of each step, fp32, [S].
        num_images: images of each prompt; the batch is then B = P * num_images.
        is_guided: also compute the velocities for the empty condition.
        mask: True for the tokens of the condition to use, bool [P, Q]; None for all.
        reference: features of images to edit, [P, N, reference_channels].
        grid: rows and columns of the tokens; None for the config's square.
        truncate_timestep: see `NextDiT.velocity`.
        layer: `sample_layer`, or its compiled form.

    Raises:
        ValueError: if a shape does not fit the network.
    """

    def __init__(
        self,
        dit: NextDiT,
        condition: Tensor,
        sigmas: Tensor,
        *,
        num_images: int = 1,
        is_guided: bool = False,
        mask: Tensor | None = None,
        reference: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        truncate_timestep: bool = False,
        layer: LayerFunction | None = None,
    ) -> None:
        self._grid = grid or (dit.config.grid, dit.config.grid)
        check_shapes(dit.config, None, condition, reference, self._grid)
        self._dit = dit
        self._layer = layer or sample_layer
        self._is_guided = is_guided
        self._rope = dit.rope(self._grid, condition.device)
        self._times = dit.time_caption_embed.timestep_embedder(
            timesteps(sigmas.to(condition.device), truncate_timestep)
        )  # [S, vector_size]
        self._prepare_conditions(condition, mask, num_images)
        self._scales: _Scales | None = None
        self._reference: Tensor | None = None
        if reference is not None and dit.reference_embedder is not None:
            embedded = dit.embed_reference(reference, self._grid)
            self._reference = embedded.repeat_interleave(num_images, 0)

    def _prepare_conditions(self, condition: Tensor, mask: Tensor | None, num_images: int) -> None:
        dit, blocks = self._dit, self._dit.blocks
        context = dit.prepare_context(condition, mask)
        pooled = context.pooled
        nulls: list[Tensor | None] = [None] * len(blocks)
        rows = torch.arange(len(condition), device=condition.device).repeat_interleave(num_images)
        if self._is_guided:
            # All tokens of the empty condition are equal, so one is enough.
            null = dit.prepare_context(condition.new_zeros(1, 1, condition.shape[-1]))
            pooled = torch.cat([null.pooled, pooled])
            nulls = [
                block.run(_null_attention, value)
                for block, (_, value) in zip(blocks, null.layers, strict=True)
            ]
            rows = torch.cat([torch.zeros_like(rows), rows + 1])
        self._pooled = pooled
        self._rows = rows  # index of the condition of each row, [B] or [2 B]
        self._contexts = [
            CrossContext(key_value, context.mask, null)
            for key_value, null in zip(context.layers, nulls, strict=True)
        ]

    def velocity(self, noisy: Tensor, step: int) -> Tensor:
        """Returns velocities (noise - clean), [B, N, C], or of [null, conditional], [2 B, N, C].

        Args:
            noisy: features on the path, [B, N, C]; images of a condition are neighbors.
            step: index of the noise level.

        Raises:
            ValueError: if the tokens do not fill the grid.
        """
        if noisy.shape[1] != self._grid[0] * self._grid[1]:
            raise ValueError(f"{noisy.shape[1]} feature tokens do not fill the grid {self._grid}")
        dit = self._dit
        scales, out_scale = self._scales_at(step)
        hidden = dit.embed_tokens(noisy, self._grid)
        if self._reference is not None:
            hidden = hidden + self._reference
        if self._is_guided:
            hidden = torch.cat([hidden, hidden])
        for block, scale, context in zip(dit.blocks, scales, self._contexts, strict=True):
            hidden = block.run(self._layer, hidden, scale, self._rope, context)
        velocity = dit.norm_out.project(hidden, out_scale)
        return dit.from_patches(velocity, self._grid).to(noisy.dtype)

    def _scales_at(self, step: int) -> tuple[Tensor, Tensor]:
        """Returns the scales of each layer [layers, 2 B, 4, E] and of the output [2 B, 1, E]."""
        first = step - step % _LEVELS_AT_ONCE
        if self._scales is None or self._scales.first != first:
            self._scales = None  # frees the old ones first
            self._scales = self._compute_scales(first)
        index = step - first
        layers = self._scales.layers[index].index_select(1, self._rows)
        return layers, self._scales.out[index].index_select(0, self._rows).unsqueeze(1)

    def _compute_scales(self, first: int) -> _Scales:
        times = self._times[first : first + _LEVELS_AT_ONCE]
        vectors = [functional.silu(times + one) for one in self._pooled]  # R of [S, vector_size]
        layers = [
            torch.stack([block.run(_layer_scales, one) for one in vectors], dim=1)  # [S, R, 4, E]
            for block in self._dit.blocks
        ]
        out = torch.stack([self._dit.norm_out.scale(one) for one in vectors], dim=1)
        return _Scales(first=first, layers=torch.stack(layers, dim=1), out=out)


def sample_layer(
    block: NextDiTBlock, hidden: Tensor, scales: Tensor, rope: RopeTable, context: CrossContext
) -> Tensor:
    """Returns the transformed tokens, [R, M, E], as `block.forward` does, without gradient.

    Args:
        block: the layer.
        hidden: image tokens, [R, M, E] with R = B, or 2 B with a null half.
        scales: factors of the four normalized tensors, weights of the norms included, [R, 4, E].
        rope: rotation of the image tokens, [M, 1, K / 2].
        context: the condition.
    """
    before_mix, after_mix, before_ffn, after_ffn = scales.unsqueeze(2).unbind(1)
    eps = block.norm2.eps
    mixed = _attention(block, _unit(hidden, eps) * before_mix, rope, context)
    hidden = torch.addcmul(hidden, _unit(mixed, eps), after_mix)
    fed = block.feed_forward(_unit(hidden, eps) * before_ffn)
    return torch.addcmul(hidden, _unit(fed, eps), after_ffn)


def _attention(
    block: NextDiTBlock, normed: Tensor, rope: RopeTable, context: CrossContext
) -> Tensor:
    own, cross = block.attn1, block.attn2
    query = rotate_neighbors(own.query(normed), rope).transpose(1, 2)
    key = rotate_neighbors(own.key(normed), rope).transpose(1, 2)
    mixed = attend(query, key, own.value(normed).transpose(1, 2)).transpose(1, 2)  # [R, M, H, K]
    conditional, seen = normed, mixed
    if context.null is not None:
        null, seen = mixed.chunk(2)
        null.add_(context.null)
        conditional = normed.chunk(2)[1]
    query = rotate_neighbors(cross.query(conditional), rope)
    # The queries of all images of a condition form one long row, so its keys are read only once.
    query = query.reshape(len(context.key_value[0]), -1, *query.shape[2:]).transpose(1, 2)
    other = attend(query, *context.key_value, mask=context.mask)
    other = other.transpose(1, 2).reshape(seen.shape)
    seen.addcmul_(block.gate.tanh().unsqueeze(-1), other)
    return cross.to_out[0](mixed.flatten(2))


def _null_attention(block: NextDiTBlock, value: Tensor) -> Tensor:
    """Returns the term that a condition of equal tokens adds to each token's attention, [H, K].

    Args:
        block: the layer.
        value: the cross-attention's values of one such token, [1, num_kv_heads, 1, K].
    """
    values = value[0, :, 0]
    heads = values.repeat_interleave(len(block.gate) // len(values), dim=0)
    return block.gate.tanh().unsqueeze(-1) * heads


def _layer_scales(block: NextDiTBlock, vectors: Tensor) -> Tensor:
    """Returns the factors of the four norms: weights times scale, gate, scale, gate, [..., 4, E].

    Args:
        block: the layer.
        vectors: conditioning vectors after their SiLU, [..., vector_size].
    """
    changes = block.norm1.linear(vectors).chunk(4, dim=-1)
    attention_scale, attention_gate, ffn_scale, ffn_gate = changes
    scales = [
        block.norm1.norm.weight * (1 + attention_scale),
        block.norm2.weight * attention_gate.tanh(),
        block.ffn_norm1.weight * (1 + ffn_scale),
        block.ffn_norm2.weight * ffn_gate.tanh(),
    ]
    return torch.stack(scales, dim=-2)


def _unit(hidden: Tensor, eps: float) -> Tensor:
    """Returns tokens divided by their root mean square, which is computed in fp32."""
    norm = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=torch.float32)
    scale = torch.rsqrt(norm.square() / hidden.shape[-1] + eps)
    return (hidden * scale).to(hidden.dtype)
