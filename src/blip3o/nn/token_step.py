"""A pass of one new token for each of several rows through a causal decoder, in few operations.

With one token, a small decoder spends most of its time on starting operations. This pass has about
25 of them in a layer, a third of those of the decoder's own layers. All decoders share it: each
names its modules as `StepLayer`s. It computes no gradients.

Axes: R rows, E width, V vocabulary, H heads, G key/value heads, K head dim, L layers, S tokens of a
row.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from blip3o.nn.joined import JoinedLinear


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepLayer:
    """The modules of a decoder layer: norm, attention, norm, SwiGLU, with residual connections.

    Args:
        norm_attention: weight of the RMS norm before the attention, [E].
        heads: linear layers of queries, keys and values, or one of all three in this order.
        norm_heads: weights of the RMS norms of each query and key head, [K] each; None without.
        out: linear layer after the attention.
        norm_mlp: weight of the RMS norm before the SwiGLU, [E].
        gate: linear layer that the SiLU follows.
        up: linear layer that the gate multiplies.
        down: linear layer after the product.
    """

    norm_attention: Tensor
    heads: tuple[nn.Module, ...]
    norm_heads: tuple[Tensor, Tensor] | None
    out: nn.Module
    norm_mlp: Tensor
    gate: nn.Module
    up: nn.Module
    down: nn.Module


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepParts:
    """The modules and sizes of a decoder.

    Args:
        layers: its layers.
        norm: weight of the final RMS norm, [E].
        norm_eps: epsilon of all norms.
        num_heads: query heads (H).
        num_kv_heads: key/value heads (G).
        rope: returns cosines and sines of positions [R], [R, P] each, in the type of the rotation;
            the channel pairs (k, k + P) of the first 2 P channels of a head rotate.
    """

    layers: Sequence[StepLayer]
    norm: Tensor
    norm_eps: float
    num_heads: int
    num_kv_heads: int
    rope: Callable[[Tensor], tuple[Tensor, Tensor]]


class TokenStep:
    """The pass of a decoder; it depends on the decoder's modules and weights at its creation.

    Args:
        parts: the decoder.
        head: the vocabulary head.
        may_copy: see `JoinedLinear`.
        num_rows: the usual largest number of rows, see `JoinedLinear`.
    """

    def __init__(self, parts: StepParts, head: nn.Linear, *, may_copy: bool, num_rows: int) -> None:
        def joined(*layers: nn.Module) -> JoinedLinear:
            return JoinedLinear(layers, may_copy=may_copy, num_rows=num_rows)

        self._parts = parts
        self._layers = [
            _Layer(
                norm_attention=layer.norm_attention,
                heads=joined(*layer.heads),
                norm_heads=_stacked(layer.norm_heads, parts),
                out=joined(layer.out),
                norm_mlp=layer.norm_mlp,
                gate_up=joined(layer.gate, layer.up),
                down=joined(layer.down),
            )
            for layer in parts.layers
        ]
        self._head = joined(head)
        self._eps_root = parts.norm.new_full((), parts.norm_eps**0.5, dtype=torch.float32)

    def __call__(
        self,
        hidden: Tensor,
        positions: Tensor,
        seen: Sequence[Tensor],
        trace: list[Tensor] | None = None,
    ) -> Tensor:
        """Returns the states of the new tokens after the final norm, [R, E].

        Args:
            hidden: input embeddings of the new tokens, [R, E].
            positions: their rotary positions, [R].
            seen: keys and values of each row, [2 L, 1, G, S, K], key before value in each layer;
                the last token is the new one, whose keys and values are written. Rows without are
                padding.
            trace: gets the outputs of all linear layers, [R, ...] each.
        """
        note = _ignore if trace is None else trace.append
        parts = self._parts
        num_query, num_rotated = parts.num_heads, parts.num_heads + parts.num_kv_heads
        is_grouped = parts.num_heads != parts.num_kv_heads
        head_dim = seen[0].shape[-1]
        tables = _tables(*parts.rope(positions), head_dim)
        memories = [one.unbind(0) for one in seen]
        slots = [one[:, 0, :, -1].unbind(0) for one in seen]
        for number, layer in enumerate(self._layers):
            key_at, value_at = 2 * number, 2 * number + 1
            heads = layer.heads(_normed(hidden, layer.norm_attention, self._eps_root))
            note(heads)
            heads = heads.view(len(hidden), -1, head_dim)
            rotated, values = heads[:, :num_rotated], heads[:, num_rotated:]
            if layer.norm_heads is not None:
                rotated = _normed(rotated, layer.norm_heads, self._eps_root)
            rotated = _rotated(rotated, *tables)
            queries = rotated[:, :num_query].unsqueeze(2)
            mixed = []
            for row, (memory, slot) in enumerate(zip(memories, slots, strict=True)):
                slot[key_at].copy_(rotated[row, num_query:])
                slot[value_at].copy_(values[row])
                mixed.append(
                    functional.scaled_dot_product_attention(
                        queries[row : row + 1],
                        memory[key_at],
                        memory[value_at],
                        enable_gqa=is_grouped,
                    )
                )
            if len(mixed) < len(hidden):
                mixed.append(torch.zeros_like(queries[len(mixed) :]))
            one = mixed[0] if len(mixed) == 1 else torch.cat(mixed)
            out = layer.out(one.reshape(len(hidden), -1))
            hidden = hidden + out
            inner = layer.gate_up(_normed(hidden, layer.norm_mlp, self._eps_root))
            gate, up = inner.chunk(2, -1)
            down = layer.down(functional.silu(gate) * up)
            hidden = hidden + down
            for output in (out, inner, down):
                note(output)
        return _normed(hidden, parts.norm, self._eps_root)

    def logits(self, states: Tensor) -> Tensor:
        """Returns the logits [R, V] of the tokens after states [R, E]."""
        return self._head(states)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    """A `StepLayer` with joined products; `norm_heads` is [H + G, K]."""

    norm_attention: Tensor
    heads: JoinedLinear
    norm_heads: Tensor | None
    out: JoinedLinear
    norm_mlp: Tensor
    gate_up: JoinedLinear
    down: JoinedLinear


def _ignore(output: Tensor) -> None:
    del output


def _stacked(weights: tuple[Tensor, Tensor] | None, parts: StepParts) -> Tensor | None:
    """Returns the weights of the norms of all query and key heads, [H + G, K]."""
    if weights is None:
        return None
    query, key = (weight.detach() for weight in weights)
    return torch.cat([query.expand(parts.num_heads, -1), key.expand(parts.num_kv_heads, -1)])


def _normed(values: Tensor, weight: Tensor, eps_root: Tensor) -> Tensor:
    """Returns the result of `rms_norm` with half of its operations; takes the root of epsilon."""
    norm = torch.linalg.vector_norm(values, dim=-1, keepdim=True, dtype=torch.float32)
    scale = torch.hypot(norm.mul_(values.shape[-1] ** -0.5), eps_root)
    return ((values / scale).to(weight.dtype) * weight).to(values.dtype)


def _tables(cos: Tensor, sin: Tensor, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns factors of a head's channels and of their partners, [R, 1, K], and the partners."""
    half = cos.shape[-1]
    rest = head_dim - 2 * half
    own = functional.pad(torch.cat([cos, cos], -1), (0, rest), value=1.0)
    other = functional.pad(torch.cat([-sin, sin], -1), (0, rest))
    places = torch.arange(head_dim, device=cos.device)
    partners = torch.cat([places[half : 2 * half], places[:half], places[2 * half :]])
    return own.unsqueeze(1), other.unsqueeze(1), partners


def _rotated(values: Tensor, own: Tensor, other: Tensor, partners: Tensor) -> Tensor:
    """Returns the result of `rotate_halves` for heads [R, N, K], with the tables of `_tables`."""
    rotated = torch.addcmul(values * own, values.index_select(-1, partners), other)
    return rotated.to(values.dtype)
