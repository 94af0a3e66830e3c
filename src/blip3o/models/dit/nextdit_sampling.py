"""NextDiT in sampling: what is constant over the steps is computed once, before them.

`NextDiT.velocity` is the plain path; this is the same function for one condition and known noise
levels. Axes: B images of P conditions (B = P * images of each), S noise levels, N image tokens,
E width, H heads, K head dim. Guided rows stand as [null, conditional], 2 B in all.

- Keys and values of the condition do not depend on the noise level: once, and one copy for all
  images of a condition.
- The empty condition is the same token Q times and the keys are not rotated, so every query of the
  null half averages equal values: its cross-attention is one constant vector, and asks no query.
- Scales and gates depend on the noise level and the condition alone: many levels in one product,
  one product for each condition and one for the null half, with the norms' weights folded in. The
  conditions do not share a product: its number of rows would decide how it is rounded, and it
  would depend on the number of levels, so an image could depend on the others of its batch.
- Both halves share the embedding of the noisy tokens and of the reference.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

from blip3o.models.dit.nextdit_block import KeyValue, NextDiTBlock
from blip3o.models.dit.patches import from_patches
from blip3o.nn.attention import attend
from blip3o.nn.rope import RopeTable, rotate_neighbors

if TYPE_CHECKING:
    from blip3o.models.dit.nextdit import NextDiT

_LEVELS_AT_ONCE = 32
"""Noise levels whose scales are kept; 20 MB for each row of the released model in fp32."""


class CrossContext(NamedTuple):
    """What a layer's cross-attention knows of the condition.

    Args:
        key_value: keys and values, [P, num_kv_heads, Q, K] each.
        null: what the empty condition adds to the attention of each token, [H, K]; None without
            guidance.
    """

    key_value: KeyValue
    null: Tensor | None


LayerFunction = Callable[[NextDiTBlock, Tensor, Tensor, RopeTable, CrossContext], Tensor]
"""The type of `sample_layer`, which may be compiled."""


@dataclasses.dataclass(frozen=True)
class _Scales:
    """What modulates the tokens from one noise level on, R = P (+ 1 with the null row).

    Args:
        first: index of the first noise level.
        layers: see `sample_layer`, [S, layers, R, 4, E].
        out: the output layer's scale, [S, R, E].
    """

    first: int
    layers: Tensor
    out: Tensor


class PreparedNextDiT:
    """A NextDiT for one condition and the noise levels of a sampler; see `NextDiT.prepare`.

    Args:
        dit: the network; its weights must not change while this is in use.
        condition: the backbone's query states, [P, Q, D].
        timesteps: 1000 * sigma of each step, [S].
        grid: rows and columns of the N tokens.
        num_images: images of each condition.
        is_guided: whether the batch has a null half.
        reference: features of images to edit, [P, N, reference_channels].
    """

    def __init__(
        self,
        dit: "NextDiT",
        condition: Tensor,
        timesteps: Tensor,
        grid: tuple[int, int],
        *,
        num_images: int,
        is_guided: bool,
        reference: Tensor | None,
    ) -> None:
        self._dit = dit
        self._blocks = [cast("NextDiTBlock", layer) for layer in dit.layers]
        self._grid = grid
        self._is_guided = is_guided
        self._rope = dit.rope(grid, condition.device)
        context = dit.prepare_context(condition)
        pooled = context.pooled
        nulls: list[Tensor | None] = [None] * len(self._blocks)
        rows = torch.arange(len(condition), device=condition.device).repeat_interleave(num_images)
        if is_guided:
            # Every token of the empty condition is the same, so one stands for all.
            null = dit.prepare_context(condition.new_zeros(1, 1, condition.shape[-1]))
            pooled = torch.cat([null.pooled, pooled])
            nulls = [
                block.cross_null(value)
                for block, (_, value) in zip(self._blocks, null.layers, strict=True)
            ]
            rows = torch.cat([torch.zeros_like(rows), rows + 1])
        self._rows = rows  # of each image among the conditions, [B] or [2 B]
        self._contexts = [CrossContext(*one) for one in zip(context.layers, nulls, strict=True)]
        self._times = dit.time_caption_embed.timestep_embedder(timesteps)  # [S, vector_size]
        self._pooled = pooled
        self._scales: _Scales | None = None
        self._reference: Tensor | None = None
        if reference is not None and dit.reference_embedder is not None:
            self._reference = dit.embed_reference(reference, grid).repeat_interleave(num_images, 0)

    def velocity(self, noisy: Tensor, step: int) -> Tensor:
        """Returns velocities (noise - clean), [B, N, C], or of [null, conditional], [2 B, N, C].

        Args:
            noisy: features on the path, [B, N, C]; images of a condition are neighbors.
            step: index of the noise level.

        Raises:
            ValueError: if the tokens do not fill the grid.
        """
        return self._dit.sample(self, noisy, step)

    def compute(self, noisy: Tensor, step: int) -> Tensor:
        """Does the work of `velocity`, with the network's weights at hand."""
        if noisy.shape[1] != self._grid[0] * self._grid[1]:
            raise ValueError(f"{noisy.shape[1]} feature tokens do not fill the grid {self._grid}")
        dit, patch = self._dit, self._dit.config.patch_size
        scales, out_scale = self._scales_at(step)
        hidden = dit.embed_tokens(noisy, self._grid)
        if self._reference is not None:
            hidden = hidden + self._reference
        if self._is_guided:
            hidden = torch.cat([hidden, hidden])
        for block, scale, context in zip(self._blocks, scales, self._contexts, strict=True):
            hidden = block.sample(dit.sample_layer, hidden, scale, self._rope, context)
        velocity = dit.norm_out.project(hidden, out_scale)
        return from_patches(velocity, self._grid, patch).to(noisy.dtype)

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
            torch.stack([block.sampling_scales(one) for one in vectors], dim=1)  # [S, R, 4, E]
            for block in self._blocks
        ]
        out = torch.stack([self._dit.norm_out.scale(one) for one in vectors], dim=1)
        return _Scales(first=first, layers=torch.stack(layers, dim=1), out=out)


def sample_layer(
    block: NextDiTBlock, hidden: Tensor, scales: Tensor, rope: RopeTable, context: CrossContext
) -> Tensor:
    """Returns what the layer makes of tokens, [R, N, E]; as `block.forward`, without gradient.

    Args:
        block: the layer.
        hidden: image tokens, [R, N, E] with R = B, or 2 B where there is a null half.
        scales: factors of the four normalized tensors, weights of the norms included, [R, 4, E].
        rope: rotation of the image tokens, [N, 1, K / 2].
        context: the cross-attention's side of the condition.
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
    mixed = attend(query, key, own.value(normed).transpose(1, 2)).transpose(1, 2)  # [R, N, H, K]
    conditional, seen = normed, mixed
    if context.null is not None:
        null, seen = mixed.chunk(2)
        null.add_(context.null)
        conditional = normed.chunk(2)[1]
    query = rotate_neighbors(cross.query(conditional), rope)
    # The images of a condition ask its keys as one long row of queries.
    query = query.reshape(len(context.key_value[0]), -1, *query.shape[2:]).transpose(1, 2)
    other = attend(query, *context.key_value).transpose(1, 2).reshape(seen.shape)
    seen.addcmul_(block.gate.tanh().unsqueeze(-1), other)
    return cross.to_out[0](mixed.flatten(2))


def _unit(hidden: Tensor, eps: float) -> Tensor:
    """Returns tokens divided by their root mean square, which is computed in fp32."""
    norm = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=torch.float32)
    scale = torch.rsqrt(norm.square() / hidden.shape[-1] + eps)
    return (hidden * scale).to(hidden.dtype)
