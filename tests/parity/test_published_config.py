"""A published config.json gives a model with the published names and shapes, on meta."""

from pathlib import Path
from typing import Any

import pytest

from blip3o.weights.keymaps.blip3o_qwen import to_published
from blip3o.weights.published import published_config
from blip3o.weights.stored import sketch


@pytest.mark.parity_cases("manifests/blip3o_qwen_*.json")
def test_a_published_config_gives_the_published_names_and_shapes(case: Any) -> None:
    manifest = case.settings()
    recorded = manifest["weights"]
    has_tower = any(name.startswith("model.gen_vision_tower.") for name in recorded)
    absent = ("image_decoder",) if has_tower else ("image_encoder", "image_decoder")
    config = published_config(manifest["config"], absent_parts=absent)
    state = to_published(sketch(config, Path("config.json"), len(recorded)).state_dict())
    assert {name: list(tensor.shape) for name, tensor in state.items()} == recorded
    assert len(state) == manifest["n_tensors"]
    assert sum(tensor.numel() for tensor in state.values()) == manifest["n_params"]
