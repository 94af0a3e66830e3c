"""Configs of newer versions of transformers, and models that the installed version writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from blip3o.core.errors import UsageError
from blip3o.weights.folder import load_model
from blip3o.weights.keymaps import blip3o_qwen, blip3o_qwen3
from blip3o.weights.keymaps.published import plain

TEXT = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "rms_norm_eps",
    "max_position_embeddings",
)


def version_5(data: dict[str, Any]) -> dict[str, Any]:
    """Returns a flat config.json as transformers 5 nests it."""
    text = {name: data[name] for name in TEXT}
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": data["rope_theta"],
        "mrope_section": data["rope_scaling"]["mrope_section"],
    }
    text |= {"model_type": "qwen2_5_vl_text", "dtype": "bfloat16"}
    rest = {k: v for k, v in data.items() if k not in (*TEXT, "rope_theta", "rope_scaling")}
    vision = dict(rest["vision_config"])
    vision["in_channels"] = vision.pop("in_chans")
    return rest | {"text_config": text, "dtype": "bfloat16", "vision_config": vision}


def version_4_52(data: dict[str, Any]) -> dict[str, Any]:
    """Returns both flat and nested fields, with the old form of rotary positions."""
    nested = version_5(data)
    nested["text_config"] |= {k: data[k] for k in ("rope_theta", "rope_scaling")}
    del nested["text_config"]["rope_parameters"]
    return {**data, **nested, "hidden_size": 1, "rope_theta": 5.0}  # nested values take precedence


def everything_nested(data: dict[str, Any]) -> dict[str, Any]:
    """Returns fields of a class that passes all of them to the language model's config."""
    nested = version_5(data)
    moved = ("gen_vision_tower", "gen_pooling", "n_query", "image_token_id", "tie_word_embeddings")
    nested["text_config"] |= {name: nested.pop(name) for name in moved}
    return nested


def without_ties(data: dict[str, Any]) -> dict[str, Any]:
    nested = version_5(data)
    del nested["tie_word_embeddings"]
    return nested


def contradictory_ties(data: dict[str, Any]) -> dict[str, Any]:
    nested = version_5(data)
    nested["text_config"]["tie_word_embeddings"] = not nested["tie_word_embeddings"]
    return nested


def other_names_of_the_tower(data: dict[str, Any]) -> dict[str, Any]:
    nested = version_5(data)
    vision = nested["vision_config"]
    vision["num_hidden_layers"] = vision.pop("depth")
    vision["num_attention_heads"] = vision.pop("num_heads")
    vision["spatial_patch_size"] = vision.pop("patch_size")
    vision["temporal_patch_size"] = [vision["temporal_patch_size"]]
    nested["image_token_index"] = nested.pop("image_token_id")
    return nested


def rope_by_layers(data: dict[str, Any]) -> dict[str, Any]:
    nested = version_5(data)
    text = nested["text_config"]
    text["rope_parameters"] = {"full_attention": text["rope_parameters"]}
    return nested


VERSIONS = [
    version_5,
    version_4_52,
    everything_nested,
    without_ties,
    contradictory_ties,
    other_names_of_the_tower,
    rope_by_layers,
]


@pytest.mark.parametrize("written", VERSIONS, ids=lambda one: one.__name__)
def test_configs_of_newer_versions(
    released_folder: Path, written: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    expected = load_model(released_folder).model
    file = released_folder / "config.json"
    file.write_text(json.dumps(written(json.loads(file.read_text()))))
    found = load_model(released_folder).model
    assert found.config == expected.config
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("text_config", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "'yarn'"),
        ("text_config", {"rope_parameters": {"mrope_section": [1, 1, 2]}}, "'rope_theta'"),
        ("text_config", {"rope_parameters": {"rope_theta": 1e6}}, "published model is unfit"),
        ("text_config", {"rope_parameters": 3}, "published model is unfit"),
        ("text_config", {"hidden_act": "gelu"}, "hidden_act must be silu"),
        ("text_config", {"use_sliding_window": True, "max_window_layers": 0}, "sliding"),
        ("vision_config", {"hidden_act": "gelu"}, "vision_config.hidden_act must be silu"),
        ("vision_config", {"in_channels": 4}, "in_channels must be 3"),
        ("vision_config", {"patch_size": [4, 8]}, "a square's side"),
    ],
)
def test_settings_that_would_change_results_are_refused(
    released_folder: Path, part: str, changes: dict[str, Any], said: str
) -> None:
    file = released_folder / "config.json"
    data = version_5(json.loads(file.read_text()))
    data[part] |= changes
    file.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=said):
        load_model(released_folder)


@pytest.mark.parametrize("tied", [False, True])
def test_configs_and_weights_that_transformers_writes_now(tmp_path: Path, tied: bool) -> None:
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
        Qwen2_5_VLForConditionalGeneration,
    )

    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
    config = Qwen2_5_VLConfig(
        text_config={
            **sizes,
            **heads,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 7e5,
                "mrope_section": [1, 1, 2],
            },
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 16,
            "fullatt_block_indexes": [1],
        },
        tie_word_embeddings=tied,
        image_token_id=60,
    )
    torch.manual_seed(0)
    theirs: Any = Qwen2_5_VLForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    own = blip3o_qwen.backbone_config(written)
    assert (own.rope_theta, own.tie_word_embeddings, own.vision.patch_px) == (7e5, tied, 14)
    for names in (load_file(tmp_path / "model.safetensors"), theirs.state_dict()):
        plain_state = plain(names, None, "it")
        assert all(blip3o_qwen.NAMES.ours(name) for name in plain_state)
        ours = {(blip3o_qwen.NAMES.ours(name) or ""): value for name, value in plain_state.items()}
        backbone = own.build().eval()
        if tied:
            ours.pop("backbone.lm_head.weight", None)
        backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in ours.items()})
        ids = torch.arange(8)[None]
        with torch.no_grad():
            hidden = backbone(backbone.embed(ids), torch.ones_like(ids, dtype=torch.bool))
            expected = theirs(input_ids=ids).logits
        torch.testing.assert_close(backbone.logits(hidden), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_qwen3_and_siglip_that_transformers_writes_now(tmp_path: Path, tied: bool) -> None:
    from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM
    from transformers.models.siglip.configuration_siglip import SiglipVisionConfig
    from transformers.models.siglip.modeling_siglip import SiglipVisionModel

    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32}
    theirs: Any = Qwen3ForCausalLM(
        Qwen3Config(
            **sizes,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            rope_parameters={"rope_type": "default", "rope_theta": 7e5},
            tie_word_embeddings=tied,
        )
    ).eval()
    tower: Any = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16,
            patch_size=4,
        )
    )
    theirs.save_pretrained(tmp_path / "text")
    tower.save_pretrained(tmp_path / "tower")
    configs = [json.loads((tmp_path / n / "config.json").read_text()) for n in ("text", "tower")]
    config = blip3o_qwen3.backbone_config(configs[0], configs[1], image_token_id=60)
    assert (config.rope_theta, config.tie_word_embeddings) == (7e5, tied)
    seen = load_file(tmp_path / "tower/model.safetensors")
    state = load_file(tmp_path / "text/model.safetensors")
    state |= {f"model.vision_tower.{name}": value for name, value in seen.items()}
    backbone: Any = config.build().eval()

    class Model(nn.Module):  # load_published expects the names of a unified model
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone

    parts = ["backbone.decoder", "backbone.vision_tower"] + ["backbone.lm_head"] * (not tied)
    model: Any = Model()
    blip3o_qwen3.load_published(model, state, "it", parts)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        hidden = backbone(backbone.embed(ids), torch.ones_like(ids, dtype=torch.bool))
        expected = theirs(input_ids=ids).logits
    torch.testing.assert_close(backbone.logits(hidden), expected, rtol=0, atol=1e-5)
