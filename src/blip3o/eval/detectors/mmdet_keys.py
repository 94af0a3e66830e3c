"""Names of Mask2Former's weights in checkpoints of mmdetection, and in transformers."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from blip3o.eval.detectors.mask2former_network import Mask2FormerNetwork, Mask2FormerSizes

UNUSED = tuple(
    f"model.pixel_level_module.encoder.swin.layernorm.{leaf}" for leaf in ("weight", "bias")
)
"""Weights of transformers' layers that no output depends on; checkpoints do not have them."""

CLASS_WEIGHT = "panoptic_head.cls_embed.weight"
"""The weight whose first axis has one row for each class and one for "no object"."""

_SWIN = "model.pixel_level_module.encoder.swin."
_PIXEL = "model.pixel_level_module.decoder."
_QUERY = "model.transformer_module."
_OLDER = {
    "encoder.swin.": "encoder.",
    "attention.q_proj": "attention.self.query",
    "attention.k_proj": "attention.self.key",
    "attention.v_proj": "attention.self.value",
    "attention.o_proj": "attention.output.dense",
    "attention.relative_position_bias.": "attention.self.",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
"""Parts of the backbone's names in transformers 5.17, and in 5.0."""


class Entry(NamedTuple):
    """A weight of a checkpoint.

    Args:
        published: its name in the checkpoint.
        ours: names of the parts that are joined in it along the first axis; none if the network
            computes it.
        is_merging: whether its last axis holds four merged patches, which both sides order
            differently: (channel, row, column) and (column, row, channel).
    """

    published: str
    ours: tuple[str, ...]
    is_merging: bool = False


def key_map(sizes: Mask2FormerSizes) -> list[Entry]:
    """Returns the weights of a checkpoint; the names are those of transformers 5.17.

    Reference:
        Names read from parity family `mask2former` (`tiny_weights`).
    """
    return [*_backbone(sizes), *_pixel_decoder(sizes), *_query_decoder(sizes)]


def to_published(network: Mask2FormerNetwork, sizes: Mask2FormerSizes) -> dict[str, Tensor]:
    """Returns the weights of a network as a checkpoint holds them, also on the meta device."""
    state = dict(network.named_parameters())
    spell = _spelling(network)
    window_area = sizes.window**2
    tensors: dict[str, Tensor] = {}
    for entry in key_map(sizes):
        if not entry.ours:
            tensors[entry.published] = torch.empty(
                window_area, window_area, dtype=torch.int64, device="meta"
            )
            continue
        whole = torch.cat([state[spell(name)].detach() for name in entry.ours])
        if entry.is_merging:
            whole = whole.unflatten(-1, (2, 2, -1)).transpose(-1, -3).flatten(-3)
        tensors[entry.published] = whole
    return tensors


def to_ours(
    tensors: Mapping[str, Tensor], network: Mask2FormerNetwork, sizes: Mask2FormerSizes
) -> dict[str, Tensor]:
    """Returns the weights of a checkpoint for a network; all parameters except `UNUSED`.

    Args:
        tensors: exactly the weights of `key_map`, in their shapes.
        network: the network, which shows how the installed transformers names its weights.
        sizes: sizes of the network.
    """
    spell = _spelling(network)
    state: dict[str, Tensor] = {}
    for entry in key_map(sizes):
        if not entry.ours:
            continue
        whole = tensors[entry.published]
        if entry.is_merging:
            whole = whole.unflatten(-1, (-1, 2, 2)).transpose(-1, -3).flatten(-3)
        parts = whole.chunk(len(entry.ours))
        state |= {spell(name): part for name, part in zip(entry.ours, parts, strict=True)}
    return state


def _spelling(network: Mask2FormerNetwork) -> Callable[[str], str]:
    """Returns the function from names of transformers 5.17 to those of a network."""
    if any(name.startswith(_SWIN) for name, _ in network.named_parameters()):
        return str

    def spell(name: str) -> str:
        if name.startswith(_SWIN):
            for newer, older in _OLDER.items():
                name = name.replace(newer, older)
        return name

    return spell


def _layer(published: str, *ours: str, is_merging: bool = False) -> Iterator[Entry]:
    """Yields weight and bias of a layer."""
    for leaf in ("weight", "bias"):
        yield Entry(f"{published}.{leaf}", tuple(f"{one}.{leaf}" for one in ours), is_merging)


def _backbone(sizes: Mask2FormerSizes) -> Iterator[Entry]:
    start = "backbone.patch_embed"
    yield from _layer(f"{start}.projection", f"{_SWIN}embeddings.patch_embeddings.projection")
    yield from _layer(f"{start}.norm", f"{_SWIN}embeddings.norm")
    for stage, num_layers in enumerate(sizes.swin_layers):
        for layer in range(num_layers):
            start = f"backbone.stages.{stage}.blocks.{layer}"
            ours = f"{_SWIN}encoder.layers.{stage}.blocks.{layer}"
            attention = f"{start}.attn.w_msa"
            names = (f"{ours}.attention.{one}_proj" for one in "qkv")
            yield from _layer(f"{attention}.qkv", *names)
            yield from _layer(f"{attention}.proj", f"{ours}.attention.o_proj")
            table = "relative_position_bias_table"
            yield Entry(
                f"{attention}.{table}", (f"{ours}.attention.relative_position_bias.{table}",)
            )
            yield Entry(f"{attention}.relative_position_index", ())
            yield from _layer(f"{start}.norm1", f"{ours}.layernorm_before")
            yield from _layer(f"{start}.norm2", f"{ours}.layernorm_after")
            yield from _layer(f"{start}.ffn.layers.0.0", f"{ours}.mlp.fc1")
            yield from _layer(f"{start}.ffn.layers.1", f"{ours}.mlp.fc2")
        if stage + 1 < len(sizes.swin_layers):
            start = f"backbone.stages.{stage}.downsample"
            ours = f"{_SWIN}encoder.layers.{stage}.downsample"
            yield from _layer(f"{start}.norm", f"{ours}.norm", is_merging=True)
            reduction = "reduction.weight"
            yield Entry(f"{start}.{reduction}", (f"{ours}.{reduction}",), is_merging=True)
        norm = f"model.pixel_level_module.encoder.hidden_states_norms.stage{stage + 1}"
        yield from _layer(f"backbone.norm{stage}", norm)


def _pixel_decoder(sizes: Mask2FormerSizes) -> Iterator[Entry]:
    head = "panoptic_head.pixel_decoder"
    for level in range(3):
        ours = f"{_PIXEL}input_projections.{level}"
        yield from _layer(f"{head}.input_convs.{level}.conv", f"{ours}.0")
        yield from _layer(f"{head}.input_convs.{level}.gn", f"{ours}.1")
    yield Entry(f"{head}.level_encoding.weight", (f"{_PIXEL}level_embed",))
    for number in range(sizes.pixel_layers):
        start, ours = f"{head}.encoder.layers.{number}", f"{_PIXEL}encoder.layers.{number}"
        for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
            yield from _layer(f"{start}.attentions.0.{name}", f"{ours}.self_attn.{name}")
        yield from _layer(f"{start}.norms.0", f"{ours}.self_attn_layer_norm")
        yield from _layer(f"{start}.norms.1", f"{ours}.final_layer_norm")
        yield from _layer(f"{start}.ffns.0.layers.0.0", f"{ours}.fc1")
        yield from _layer(f"{start}.ffns.0.layers.1", f"{ours}.fc2")
    for name, ours in (("lateral_convs", "adapter_1"), ("output_convs", "layer_1")):
        yield Entry(f"{head}.{name}.0.conv.weight", (f"{_PIXEL}{ours}.0.weight",))
        yield from _layer(f"{head}.{name}.0.gn", f"{_PIXEL}{ours}.1")
    yield from _layer(f"{head}.mask_feature", f"{_PIXEL}mask_projection")


def _query_decoder(sizes: Mask2FormerSizes) -> Iterator[Entry]:
    head = "panoptic_head"
    embeddings = {
        "query_embed": "queries_embedder",
        "query_feat": "queries_features",
        "level_embed": "level_embed",
    }
    for published, ours in embeddings.items():
        yield Entry(f"{head}.{published}.weight", (f"{_QUERY}{ours}.weight",))
    for number in range(sizes.query_layers):
        start = f"{head}.transformer_decoder.layers.{number}"
        ours = f"{_QUERY}decoder.layers.{number}"
        cross, own = f"{start}.attentions.0.attn", f"{start}.attentions.1.attn"
        for leaf in ("weight", "bias"):
            joined = f"in_proj_{leaf}"
            yield Entry(f"{cross}.{joined}", (f"{ours}.cross_attn.{joined}",))
            parts = tuple(f"{ours}.self_attn.{one}_proj.{leaf}" for one in "qkv")
            yield Entry(f"{own}.{joined}", parts)
        yield from _layer(f"{cross}.out_proj", f"{ours}.cross_attn.out_proj")
        yield from _layer(f"{own}.out_proj", f"{ours}.self_attn.out_proj")
        for norm, name in enumerate(("cross_attn_", "self_attn_", "final_")):
            yield from _layer(f"{start}.norms.{norm}", f"{ours}.{name}layer_norm")
        yield from _layer(f"{start}.ffns.0.layers.0.0", f"{ours}.fc1")
        yield from _layer(f"{start}.ffns.0.layers.1", f"{ours}.fc2")
    yield from _layer(f"{head}.transformer_decoder.post_norm", f"{_QUERY}decoder.layernorm")
    yield from _layer(f"{head}.cls_embed", "class_predictor")
    for number, layer in enumerate((0, 2, 4)):
        ours = f"{_QUERY}decoder.mask_predictor.mask_embedder.{number}.0"
        yield from _layer(f"{head}.mask_embed.{layer}", ours)
