"""Weights of the released Qwen models: names in both directions, strict loading, config.json."""

import dataclasses

import pytest
import torch
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.weights.keymaps.blip3o_qwen import (
    NAMES,
    TRAINING_PARTS,
    backbone_config,
    load_published,
    to_published,
)
from blip3o.weights.keymaps.published import PrefixMap


def build(seed: int, *, tied: bool = False) -> UnifiedModel:
    torch.manual_seed(seed)
    backbone = dataclasses.replace(Qwen2_5VLBackboneConfig.tiny(), tie_word_embeddings=tied)
    return dataclasses.replace(UnifiedModelConfig.tiny(), backbone=backbone).build()


def checkpoint(seed: int, *, tied: bool = False) -> dict[str, Tensor]:
    return to_published(build(seed, tied=tied).state_dict())


def test_prefixes_of_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="no inverse"):
        PrefixMap((("model.", "a."), ("model.norm.", "b.")))


def test_every_weight_of_the_loaded_parts_is_replaced_and_saved_again() -> None:
    state = checkpoint(1)
    model = build(2)
    load_published(model, state, "it", TRAINING_PARTS)
    again = to_published(model.state_dict())
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    assert state["model.latent_queries"].shape == (1, 4, 16)
    assert all(NAMES.ours(name) is not None for name in state)


def test_parts_that_are_not_requested_are_skipped() -> None:
    state, model = checkpoint(1), build(2)
    before = {k: v.clone() for k, v in model.image_encoder.state_dict().items()}
    load_published(model, {**state, "model.vae.encoder.weight": torch.zeros(1)}, "it")
    assert all(torch.equal(v, before[k]) for k, v in model.image_encoder.state_dict().items())
    assert torch.equal(
        model.get_parameter("generator.dit.layers.0.gate"), state["model.dit.model.layers.0.gate"]
    )


def test_all_mismatches_are_listed_together_and_nothing_is_loaded() -> None:
    state, model = checkpoint(1), build(2)
    before = model.get_parameter("generator.dit.layers.0.gate").clone()
    del state["model.norm.weight"], state["visual.merger.ln_q.weight"]
    state["model.layers.7.mlp.up_proj.weight"] = torch.zeros(1)
    state["optimizer"] = torch.zeros(1)
    state["model.latent_queries"] = torch.zeros(1, 5, 16)
    with pytest.raises(UsageError) as caught:
        load_published(model, state, "it")
    message = str(caught.value)
    assert "weights in it do not fit" in message
    assert "missing: model.norm.weight, visual.merger.ln_q.weight;" in message
    assert "extra: model.layers.7.mlp.up_proj.weight, optimizer;" in message
    assert "wrong shape: model.latent_queries [1, 5, 16] instead of [1, 4, 16]" in message
    assert torch.equal(model.get_parameter("generator.dit.layers.0.gate"), before)


def test_a_tied_head_may_be_in_the_file_if_it_is_the_embedding_table() -> None:
    state, model = checkpoint(1, tied=True), build(2, tied=True)
    assert "lm_head.weight" not in state
    table = state["model.embed_tokens.weight"]
    load_published(model, {**state, "lm_head.weight": table.clone()}, "it")
    with pytest.raises(UsageError, match=r"lm_head\.weight is not model\.embed_tokens\.weight"):
        load_published(model, {**state, "lm_head.weight": table + 1}, "it")


def test_an_untied_head_is_required() -> None:
    state, model = checkpoint(1), build(2)
    del state["lm_head.weight"]
    with pytest.raises(UsageError, match=r"missing: lm_head\.weight"):
        load_published(model, state, "it")


def test_a_published_config_that_lacks_a_field_is_refused() -> None:
    with pytest.raises(UsageError, match="lacks 'vision_config'"):
        backbone_config({"hidden_size": 16})
    with pytest.raises(UsageError, match="lacks 'vocab_size'"):
        backbone_config({"vision_config": {}})
