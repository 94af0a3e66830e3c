"""Settings written as text in overrides and run files of recipes, stages and models."""

from pathlib import Path
from typing import Any

import pytest

from blip3o.core.config import from_dict, override, read_yaml, save_yaml
from blip3o.core.errors import UsageError
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.models.decoders.sdxl import SdxlDecoderConfig
from blip3o.recipes import qwen2_5_vl
from blip3o.runs.scenes import ScenesConfig
from blip3o.runs.start import _override_stages, load_recipe
from blip3o.train.config import RunConfig

TEXTS = ["my dog #1", "&x", "~", "010", "1:30", "[V] dog", "dog: Rex", "2024", "yes", "{x}", "a=b"]
CAPTION = "data.mixture.0.source.caption"


def own_data() -> Any:
    return load_recipe("own_data", Path("runs"))


@pytest.mark.parametrize("text", [*TEXTS, " x ", "\u72ac", "'", '"', ""])
def test_a_caption_of_own_data_is_kept_as_written(tmp_path: Path, text: str) -> None:
    config = override(own_data(), [f"{CAPTION}={text}", "data.mixture.0.source.path=~/p #1"])
    assert config.data.mixture[0].source.caption == text
    assert config.data.mixture[0].source.path == str(Path.home() / "p #1")
    save_yaml(config, tmp_path / "config.yaml")
    assert from_dict(RunConfig, read_yaml(tmp_path / "config.yaml")) == config
    assert load_recipe(str(tmp_path / "config.yaml"), tmp_path) == config


@pytest.mark.parametrize("text", TEXTS)
def test_a_setting_of_a_model_is_kept_as_written(text: str) -> None:
    model = qwen2_5_vl.model(Qwen2_5VLBackboneConfig.published_4b())
    assert override(model, [f"chat.system={text}"]).chat.system == text
    assert override(model, ["chat.system=null"]).chat.system is None
    assert override(model, ["sampling.num_decoder_steps=010"]).sampling.num_decoder_steps == 10
    scheduler = override(model, ["image_decoder.scheduler._class_name=EulerDiscreteScheduler"])
    assert isinstance(scheduler.image_decoder, SdxlDecoderConfig)
    assert scheduler.image_decoder.scheduler["_class_name"] == "EulerDiscreteScheduler"


def test_a_run_file_keeps_texts_and_refuses_duplicate_keys(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    save_yaml(own_data(), file)
    lines = file.read_text().splitlines()
    (number,) = [n for n, line in enumerate(lines) if line.strip().startswith("caption:")]
    indent = lines[number][: len(lines[number]) - len(lines[number].lstrip())]
    for text in ("2024", "010", "yes", "1:30", "1e-4", "2024-05-01"):
        lines[number] = f"{indent}caption: {text}"
        file.write_text("\n".join(lines))
        config: Any = load_recipe(str(file), tmp_path)
        assert config.data.mixture[0].source.caption == text
    lines.insert(number, lines[number])
    file.write_text("\n".join(lines))
    with pytest.raises(UsageError, match=rf"line {number + 2}: the key 'caption' appears twice"):
        load_recipe(str(file), tmp_path)


def test_settings_of_stages_that_must_change_together_may(tmp_path: Path) -> None:
    stages: Any = load_recipe("pocket.all", tmp_path)
    parts = ("normalizer.num_components", "image_decoder.feature_channels")
    sizes = [f"generation.model.{part}=32" for part in parts]
    changed = _override_stages(stages, [*sizes, "tune.train.steps=010"])
    assert changed["generation"].model.joints.feature_channels == 32
    assert changed["tune"].train.steps == 10
    assert changed["encoder"] == stages["encoder"]


def test_widths_that_must_change_together_may_in_any_order() -> None:
    config: Any = load_recipe("pocket.generation", Path("runs"))
    sizes = ["model.normalizer.num_components=32", "model.image_decoder.feature_channels=32"]
    for order in (sizes, sizes[::-1]):
        changed = override(config, order)
        assert changed.model.joints.feature_channels == 32
    with pytest.raises(UsageError):
        override(config, sizes[:1])


def test_widths_of_a_generator_follow_its_neighbors() -> None:
    config: Any = load_recipe("pocket.clip_flow", Path("runs"))
    changed = override(config, ["model.backbone.hidden_size=384"])
    assert changed.model.generator.dit(changed.model.joints).condition_size == 384


def test_the_scenes_data_set_takes_decimal_numbers() -> None:
    assert override(ScenesConfig(), ["num_scenes=010", "split=val"]).num_scenes == 10
    for bad in ("num_scenes=0x10", "num_scenes=1:30", "num_scenes="):
        with pytest.raises(UsageError, match="num_scenes must be int"):
            override(ScenesConfig(), [bad])
