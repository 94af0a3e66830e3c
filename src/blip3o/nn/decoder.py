"""A causal decoder for this project's own small language models.

Its `forward` takes the same arguments as the decoders of transformers, so a backbone can use
either. It needs no library besides torch. Axes: B rows, T new tokens, S seen tokens, E width, H
heads, G key/value heads, K head dim.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from blip3o.nn.attention import attend
from blip3o.nn.mlp import SwiGLU
from blip3o.nn.norm import RMSNorm
from blip3o.nn.rope import RopeTable, rotate_halves, sequence_rope_table
from blip3o.nn.token_step import StepLayer, StepParts

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of some tokens in one layer, [B, G, S, K] each."""


class LayerCache(Protocol):
    """Keeps the keys and values of earlier tokens, layer by layer."""

    def update(self, key: Tensor, value: Tensor, layer: int) -> KeyValue:
        """Appends a layer's keys and values [B, G, T, K] and returns those to attend to."""
        ...


@runtime_checkable
class PaddedCache(LayerCache, Protocol):
    """A cache whose rows have one length, so that a layer's part of it is two tensors.

    The layers take and return these tensors and never see the cache. A compiled layer would
    otherwise depend on its own number and on the state of the cache, and be compiled once for each.
    """

    def past(self, layer: int) -> KeyValue | None:
        """Returns a layer's keys and values; None if it has none."""
        ...

    def keep(self, layer: int, key_value: KeyValue) -> None:
        """Replaces a layer's keys and values."""
        ...


class RowAttention(Protocol):
    """Attention of rows that share one line of tokens."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Returns the mixed values [B, T, H, K] of queries [B, H, T, K]."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSizes:
    """Sizes of a `DecoderBlock`.

    Args:
        hidden_size: width (E).
        intermediate_size: width inside the SwiGLU.
        num_heads: query heads (H).
        num_kv_heads: key/value heads (G); it divides H.
        head_dim: width of a head (K).
        norm_eps: epsilon of the norms.
        norm_heads: normalize each query and key head, before they rotate.
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    norm_heads: bool


class DecoderBlock(nn.Module):
    """Self-attention with rotary positions and SwiGLU, each preceded by an RMSNorm; no biases.

    Args:
        sizes: sizes of the block.
        layer: index of the block among the layers of a cache.
    """

    def __init__(self, sizes: BlockSizes, layer: int) -> None:
        super().__init__()
        self._layer = layer
        self._heads = [sizes.num_heads, sizes.num_kv_heads, sizes.num_kv_heads]
        width, head_dim, eps = sizes.hidden_size, sizes.head_dim, sizes.norm_eps
        self.norm_attention = RMSNorm(width, eps)
        self.qkv = nn.Linear(width, sum(self._heads) * head_dim, bias=False)
        self.norm_query = RMSNorm(head_dim, eps) if sizes.norm_heads else nn.Identity()
        self.norm_key = RMSNorm(head_dim, eps) if sizes.norm_heads else nn.Identity()
        self.out = nn.Linear(sizes.num_heads * head_dim, width, bias=False)
        self.norm_mlp = RMSNorm(width, eps)
        self.mlp = SwiGLU(width, sizes.intermediate_size)

    def forward(
        self,
        hidden: Tensor,
        table: RopeTable,
        *,
        mask: Tensor | None = None,
        past: KeyValue | None = None,
        packing: RowAttention | None = None,
        past_key_values: LayerCache | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """Returns the transformed tokens [B, T, E], and the keys and values they attended to.

        Args:
            hidden: tokens, [B, T, E].
            table: rotation angles of the tokens, [B, 1, T, pairs].
            mask: True where a token may attend, broadcastable to [B, H, T, S]; None for causality.
            past: keys and values of earlier tokens.
            packing: computes the attention instead, without the mask and `past`.
            past_key_values: the cache of `packing`; the keys and values of the tokens are appended.
        """
        heads = self.qkv(self.norm_attention(hidden)).unflatten(-1, (sum(self._heads), -1))
        query, key, value = heads.transpose(1, 2).split(self._heads, dim=1)
        query = rotate_halves(self.norm_query(query), table)
        key = rotate_halves(self.norm_key(key), table)
        if packing is not None:
            if past_key_values is not None:
                key, value = past_key_values.update(key, value, self._layer)
            mixed = packing.attend(query, key, value, None)
        else:
            if past is not None:
                key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
            mixed = attend(query, key, value, mask=mask, is_causal=mask is None).transpose(1, 2)
        hidden = hidden + self.out(mixed.flatten(2))
        return hidden + self.mlp(self.norm_mlp(hidden)), (key, value)

    def step_layer(self) -> StepLayer:
        """Returns the modules of the block for a `TokenStep`."""
        query, key = self.norm_query, self.norm_key
        is_normed = isinstance(query, RMSNorm) and isinstance(key, RMSNorm)
        return StepLayer(
            norm_attention=self.norm_attention.weight,
            heads=(self.qkv,),
            norm_heads=(query.weight, key.weight) if is_normed else None,
            out=self.out,
            norm_mlp=self.norm_mlp.weight,
            gate=self.mlp.linear_1,
            up=self.mlp.linear_3,
            down=self.mlp.linear_2,
        )


@dataclasses.dataclass(frozen=True)
class DecoderOutput:
    """The result of a pass, named as in transformers.

    Args:
        last_hidden_state: states after the final norm, [B, T, E].
        hidden_states: the embeddings and the states after each layer, those of the last one after
            the final norm; None if they were not asked for.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


class CausalDecoder(nn.Module):
    """Input embeddings to hidden states.

    Args:
        sizes: sizes of a block.
        num_layers: number of blocks.
        vocab_size: number of token embeddings.
        rotary_dim: channels of a head that rotate with the position, even.
        rope_theta: base of the rotary frequencies.
        init_std: standard deviation of the fresh weights of embeddings and linear layers.
    """

    def __init__(
        self,
        sizes: BlockSizes,
        *,
        num_layers: int,
        vocab_size: int,
        rotary_dim: int,
        rope_theta: float,
        init_std: float,
    ) -> None:
        super().__init__()
        self._sizes, self._rotary_dim, self._rope_theta = sizes, rotary_dim, rope_theta
        self.embed_tokens = nn.Embedding(vocab_size, sizes.hidden_size)
        self.layers = nn.ModuleList(DecoderBlock(sizes, layer) for layer in range(num_layers))
        self.norm = RMSNorm(sizes.hidden_size, sizes.norm_eps)
        for module in self.modules():
            if isinstance(module, nn.Embedding | nn.Linear):
                nn.init.normal_(module.weight, std=init_std)

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: LayerCache | None = None,
        packing: RowAttention | None = None,
        *,
        output_hidden_states: bool = False,
    ) -> DecoderOutput:
        """Returns the states of new tokens.

        Args:
            inputs_embeds: [B, T, E].
            position_ids: rotary positions, [B, T].
            attention_mask: True where a token may attend, bool [B, 1, T, S]; None for causality.
            past_key_values: keys and values of earlier tokens; the new ones are appended.
            packing: computes the attention of rows that share one line of tokens.
            output_hidden_states: also return the states after each layer.
        """
        hidden, states = inputs_embeds, [inputs_embeds]
        table = self._rope(position_ids.unsqueeze(1))
        padded = None
        if packing is None and past_key_values is not None:
            assert isinstance(past_key_values, PaddedCache)
            padded, past_key_values = past_key_values, None
        for number, layer in enumerate(self.layers):
            hidden, key_value = layer(
                hidden,
                table,
                mask=attention_mask,
                past=None if padded is None else padded.past(number),
                packing=packing,
                past_key_values=past_key_values,
            )
            if padded is not None:
                padded.keep(number, key_value)
            states.append(hidden)
        states[-1] = hidden = self.norm(hidden)
        return DecoderOutput(hidden, tuple(states) if output_hidden_states else None)

    def step_parts(self) -> StepParts:
        """Returns the modules and sizes of the decoder for a `TokenStep`."""
        layers = [layer for layer in self.layers if isinstance(layer, DecoderBlock)]
        return StepParts(
            layers=[layer.step_layer() for layer in layers],
            norm=self.norm.weight,
            norm_eps=self._sizes.norm_eps,
            num_heads=self._sizes.num_heads,
            num_kv_heads=self._sizes.num_kv_heads,
            rope=self._rope,
        )

    def _rope(self, positions: Tensor) -> RopeTable:
        return sequence_rope_table(positions, self._rotary_dim, self._rope_theta)
