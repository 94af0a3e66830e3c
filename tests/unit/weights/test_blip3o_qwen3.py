"""Weights of the Qwen3-SigLIP2 variant: names in both directions, strict loading, config.json."""

import dataclasses

import pytest
import torch
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.models.backbones.qwen3 import Qwen3BackboneConfig
from blip3o.models.encoders.siglip2 import Siglip2EncoderConfig
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.weights.keymaps.blip3o_qwen3 import (
    INFERENCE_PARTS,
    NAMES,
    TRAINING_PARTS,
    UNDERSTANDING_PARTS,
    backbone_config,
    load_published,
    to_published,
)


def build(seed: int, *, tied: bool = True) -> UnifiedModel:
    torch.manual_seed(seed)
    backbone = dataclasses.replace(
        Qwen3BackboneConfig.tiny(),
        image_channels=None,
        vision_tower=dataclasses.replace(Siglip2EncoderConfig.tiny(), keep_head=True),
        tie_word_embeddings=tied,
    )
    return dataclasses.replace(UnifiedModelConfig.tiny(), backbone=backbone).build()


def checkpoint(seed: int, *, tied: bool = True) -> dict[str, Tensor]:
    return to_published(build(seed, tied=tied).state_dict())


@pytest.mark.parametrize("tied", [True, False])
def test_a_training_checkpoint_is_loaded_and_saved_completely(tied: bool) -> None:
    state, model = checkpoint(1, tied=tied), build(2, tied=tied)
    load_published(model, state, "it", TRAINING_PARTS)
    again = to_published(model.state_dict())
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    assert all(NAMES.published(NAMES.ours(name) or "") == name for name in state)
    assert ("lm_head.weight" in state) == (not tied)


def test_non_finite_numbers_are_refused() -> None:
    state = checkpoint(1)
    name = "model.norm.weight"
    for value in (torch.full_like(state[name], torch.inf), state[name].long()):
        with pytest.raises(UsageError, match=rf"{name} (holds|int64)"):
            load_published(build(2), state | {name: value}, "it", INFERENCE_PARTS)


def test_an_inference_checkpoint_does_not_change_the_tower_and_the_projector() -> None:
    unseen = ("model.vision_tower.", "model.mm_projector.", "model.gen_vision_tower.")
    state = {name: v for name, v in checkpoint(1).items() if not name.startswith(unseen)}
    model = build(2)
    before = {name: v.clone() for name, v in to_published(model.state_dict()).items()}
    load_published(model, state, "it", INFERENCE_PARTS)
    for name, value in to_published(model.state_dict()).items():
        assert torch.equal(value, before[name] if name.startswith(unseen) else state[name]), name
    with pytest.raises(
        UsageError, match=r"missing: model\.mm_projector\.0\.bias, .* and \d+ more$"
    ):
        load_published(model, state, "it", UNDERSTANDING_PARTS)


def test_all_mismatches_are_listed_together() -> None:
    state, model = checkpoint(1), build(2)
    del state["model.mm_projector.2.bias"]
    state["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(16)
    state["model.norm.weight"] = torch.zeros(17)
    with pytest.raises(UsageError) as caught:
        load_published(model, state, "it", UNDERSTANDING_PARTS)
    message = str(caught.value)
    assert "missing: model.mm_projector.2.bias;" in message
    assert "extra: model.layers.0.self_attn.q_proj.bias;" in message
    assert "wrong shape: model.norm.weight [17] instead of [16]" in message


def test_a_published_config_that_lacks_a_field_is_refused() -> None:
    with pytest.raises(UsageError, match="lacks 'vocab_size'"):
        backbone_config({}, {})
