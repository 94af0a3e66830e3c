"""Start weights: missing models and other sizes are reported before anything is written."""

import dataclasses
from pathlib import Path

import pytest

from blip3o.core.config import evolve, override
from blip3o.core.errors import UsageError
from blip3o.recipes import own_data, pocket, qwen2_5_vl
from blip3o.runs.initial import build_model, check_start
from blip3o.runs.start import load_recipe, train
from blip3o.train.config import RunConfig


@pytest.fixture(autouse=True)
def _empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["decoder", "look_ups", "understanding", "generation", "tune"])
@pytest.mark.parametrize("is_half_done", [False, True])
def test_a_missing_stage_is_named_with_the_recipe_that_trains_it(
    name: str, is_half_done: bool, tmp_path: Path
) -> None:
    config = load_recipe(f"pocket.{name}", tmp_path)
    assert isinstance(config, RunConfig)
    folder = config.init[0].folder
    if is_half_done:
        (tmp_path / folder / "checkpoints").mkdir(parents=True)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UsageError) as caught:
        train(config, tmp_path / "runs/x")
    message, recipe = str(caught.value), folder.replace("runs/", "").replace("/", ".")
    assert f"blip3o train {recipe} --out {folder}" in message
    assert "\n" not in message
    assert set(tmp_path.rglob("*")) == before  # neither scenes nor a run folder
    changes = message.rpartition("add to your command: ")[2].split()
    check_start(override(config, changes))  # the advice works


def test_a_missing_released_stage_is_named_without_a_model_that_does_not_fit() -> None:
    with pytest.raises(UsageError, match=r"blip3o train blip3o_4b\.generation --out") as caught:
        check_start(qwen2_5_vl.tune_4b())
    assert "bundled" not in str(caught.value)


@pytest.mark.parametrize("folder", ["nosuch", "/nowhere/at/all", "runs/pocket/nosuch"])
def test_any_other_missing_folder_is_named_with_its_setting(folder: str) -> None:
    config = evolve(own_data.pocket(), {"init.0.folder": folder})
    with pytest.raises(UsageError, match=r"^init\.0\.folder: ") as caught:
        check_start(config)
    assert folder in str(caught.value)


SIZES = {
    "wider": ({"model.generator.hidden_size": 128}, "generator"),
    "deeper": ({"model.generator.num_layers": 8}, "generator"),
    "more queries": ({"model.generator.num_query_tokens": 32}, "generator"),
    "vocabulary": ({"model.backbone.vocab_size": 1024}, "backbone"),
}


@pytest.mark.parametrize("name", SIZES)
def test_other_sizes_are_reported_with_the_parts_that_fit(name: str) -> None:
    changes, part = SIZES[name]
    config = evolve(own_data.pocket(), changes)
    with pytest.raises(UsageError) as caught:
        check_start(config)
    message = str(caught.value)
    assert f"do not fit: {part}" in message
    assert "in this run and " in message
    assert "\n" not in message
    line = message.rpartition('"init.0.parts=')[2].partition('"')[0]
    advised = override(config, [f"init.0.parts={line}"])
    assert part not in advised.init[0].parts
    check_start(advised)
    tokenizer, model = build_model(advised)
    assert tokenizer is not None
    assert model.config == advised.model


def test_parts_that_do_not_fit_at_all_are_reported() -> None:
    config = evolve(own_data.pocket(), {"model.generator.hidden_size": 128})
    init = (dataclasses.replace(config.init[0], parts=("generator",)),)
    with pytest.raises(UsageError, match=r"no part of it fits.*init=\[\]"):
        check_start(dataclasses.replace(config, init=init))


def test_an_unknown_part_is_named_with_its_setting() -> None:
    config = evolve(own_data.pocket(), {"init.0.parts": ["ditt"]})
    with pytest.raises(UsageError, match=r"init\.0\.parts \['ditt'\] name no part"):
        check_start(config)


def test_the_bundled_model_fits_its_own_recipes() -> None:
    check_start(own_data.pocket())
    check_start(pocket.smoke())
