"""The pocket backbone against Qwen3 of transformers, and its rotary positions."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blip3o.models.backbones.cache import KeyValueCache
from blip3o.models.backbones.pocket import PocketBackboneConfig
from blip3o.models.backbones.qwen3 import Qwen3BackboneConfig

NAMES = {
    "norm_attention": "input_layernorm",
    "norm_query": "self_attn.q_norm",
    "norm_key": "self_attn.k_norm",
    "out": "self_attn.o_proj",
    "norm_mlp": "post_attention_layernorm",
    "mlp.linear_1": "mlp.gate_proj",
    "mlp.linear_2": "mlp.down_proj",
    "mlp.linear_3": "mlp.up_proj",
}
"""Names of modules in a layer: ours and those of Qwen3."""


def build(config: Any) -> Any:
    torch.manual_seed(0)
    backbone = config.build().eval()
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.3)
    return backbone


def copy_of_qwen3(theirs: nn.Module, layers: int) -> dict[str, Tensor]:
    """Returns the weights of a decoder of Qwen3 by our names."""
    state = theirs.state_dict()
    ours = {name: state[name] for name in ("embed_tokens.weight", "norm.weight")}
    for layer in range(layers):
        at = f"layers.{layer}."
        ours |= {f"{at}{own}.weight": state[f"{at}{name}.weight"] for own, name in NAMES.items()}
        parts = [state[f"{at}self_attn.{one}_proj.weight"] for one in "qkv"]
        ours[f"{at}qkv.weight"] = torch.cat(parts)
    return ours


@torch.no_grad()
def test_with_full_rotation_it_is_qwen3() -> None:
    sizes = PocketBackboneConfig.tiny()
    sizes = dataclasses.replace(sizes, rotary_dim=sizes.head_dim, rope_theta=1e4, num_heads=4)
    shared = {f.name for f in dataclasses.fields(sizes)} & {
        f.name for f in dataclasses.fields(Qwen3BackboneConfig)
    }
    same = {name: getattr(sizes, name) for name in shared - {"kind"}}
    qwen3, ours = build(Qwen3BackboneConfig(**same)), build(sizes)
    ours.decoder.load_state_dict(copy_of_qwen3(qwen3.decoder, sizes.num_layers), strict=True)
    embeds, mask = torch.randn(2, 7, sizes.hidden_size), torch.ones(2, 7, dtype=torch.bool)
    mask[1, :3] = False
    for got, expected in zip(
        ours.layer_states(embeds, mask), qwen3.layer_states(embeds, mask), strict=True
    ):
        torch.testing.assert_close(got[mask], expected[mask], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rotary_dim", [0, 4, 8])
@torch.no_grad()
def test_only_rotating_channels_know_the_order_of_tokens(rotary_dim: int) -> None:
    """Without them, the last token sees a bag of tokens; never does a common shift matter."""
    sizes = dataclasses.replace(PocketBackboneConfig.tiny(), rotary_dim=rotary_dim, num_layers=1)
    backbone = build(sizes)
    embeds = torch.randn(1, 6, sizes.hidden_size)
    mask = torch.ones(1, 6, dtype=torch.bool)
    last = backbone(embeds, mask)[:, -1]
    swapped = backbone(embeds[:, [2, 0, 1, 4, 3, 5]], mask)[:, -1]
    assert torch.allclose(last, swapped, atol=1e-5) == (rotary_dim == 0)
    shifted = backbone(embeds, mask, None, torch.arange(6)[None] + 9)[:, -1]
    torch.testing.assert_close(shifted, last, rtol=0, atol=1e-4)


def test_sizes_that_do_not_fit_are_refused_and_fresh_weights_are_as_wide_as_asked() -> None:
    tiny = PocketBackboneConfig.tiny()
    wrongs: list[dict[str, Any]] = [{"rotary_dim": 3}, {"rotary_dim": 10}, {"num_kv_heads": 3}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="|".join(wrong)):
            dataclasses.replace(tiny, **wrong)
    decoder = dataclasses.replace(tiny, init_std=0.5, norm_heads=False).build_decoder()
    assert not any("norm_query" in name for name in decoder.state_dict())
    assert all(0.4 < float(w.detach().std()) < 0.6 for w in decoder.parameters() if w.ndim > 1)


@pytest.mark.compile
def test_all_layers_share_their_compiled_forms_also_after_a_prompt() -> None:
    """Prompts of a third size are not compiled again; nor are the layers of a deeper decoder."""
    from torch._dynamo.testing import CompileCounter

    counts = []
    for num_layers in (2, 4):
        plain = build(dataclasses.replace(PocketBackboneConfig.tiny(), num_layers=num_layers))
        compiled, counter = copy.deepcopy(plain), CompileCounter()
        torch._dynamo.reset()
        for layer in compiled.decoder.layers:
            layer.compile(backend=counter)
        for rows, length in ((3, 6), (4, 7), (5, 9), (6, 5)):
            embeds = torch.randn(rows, length + 4, 16, requires_grad=True)
            seen = torch.ones(rows, length, dtype=torch.bool)
            seen[0, 0] = False
            states = [states_after(one, embeds, seen) for one in (plain, compiled)]
            torch.testing.assert_close(*states, rtol=0, atol=1e-4)
            counts.append(counter.frame_count)
    assert counts[0] < counts[1] == counts[2] == counts[3]
    assert counts[4:] == counts[:4]


def states_after(backbone: Any, embeds: Tensor, seen: Tensor) -> Tensor:
    """Returns the states of a block of four tokens after a prompt."""
    cache, length = KeyValueCache(), seen.shape[1]
    backbone(embeds[:, :length], seen, cache)
    positions = length + torch.arange(4).expand(len(seen), 4)
    return backbone.block_states(embeds[:, length:], seen, cache, positions)
