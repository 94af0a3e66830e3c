"""Start weights: missing models and other sizes are reported before anything is written."""

import dataclasses
from pathlib import Path

import pytest
import torch

from blip3o.core.config import evolve, override
from blip3o.core.errors import UsageError
from blip3o.models.generators.lmfusion import LMFusionConfig
from blip3o.models.generators.query_dit import QueryDiTConfig
from blip3o.recipes import own_data, pocket, qwen2_5_vl
from blip3o.runs.initial import build_model, check_start
from blip3o.runs.start import load_recipe, train
from blip3o.train.config import RunConfig
from blip3o.weights.folder import open_model
from blip3o.weights.shards import read


@pytest.fixture(autouse=True)
def _empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "name", ["decoder", "names", "understanding", "generation", "tune", "refine", "finish"]
)
@pytest.mark.parametrize("is_half_done", [False, True])
def test_a_missing_stage_is_named_with_the_recipe_that_trains_it(
    name: str, is_half_done: bool, tmp_path: Path
) -> None:
    config = load_recipe(f"pocket.{name}", tmp_path)
    assert isinstance(config, RunConfig)
    config = dataclasses.replace(config, model=open_model("pocket").config)
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


OTHER_GENERATOR = {
    "model.generator": QueryDiTConfig(num_query_tokens=9, hidden_size=48, num_layers=1, num_heads=4)
}
SIZES = {
    "narrower": ({"model.image_decoder.widths": [128, 96, 64]}, "image_decoder"),
    "deeper": ({"model.image_encoder.num_layers": 8}, "image_encoder"),
    "another kind": (OTHER_GENERATOR, "generator"),
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
    config = evolve(own_data.pocket(), OTHER_GENERATOR)
    init = (dataclasses.replace(config.init[0], parts=("generator",)),)
    with pytest.raises(UsageError, match=r"no part of it fits.*init=\[\]"):
        check_start(dataclasses.replace(config, init=init))


def test_an_unknown_part_is_named_with_its_setting() -> None:
    config = evolve(own_data.pocket(), {"init.0.parts": ["ditt"]})
    with pytest.raises(UsageError, match=r"init\.0\.parts \['ditt'\] name no part"):
        check_start(config)


OWN_EYES = {"backbone.vision_tower": "image_encoder"}


def _with_own_eyes() -> RunConfig:
    """Returns a run whose backbone sees with a tower that the bundled model keeps elsewhere."""
    config = own_data.pocket()
    changes = {
        "model.backbone.image_channels": None,
        "model.backbone.vision_tower": config.model.image_encoder,
        "init.0.sources": OWN_EYES,
    }
    return evolve(config, changes)


def test_weights_are_read_from_another_name_of_the_stored_model() -> None:
    config = _with_own_eyes()
    check_start(config)
    model = build_model(config)[1].state_dict()
    stored = open_model("pocket").tensors
    eyes = {name.removeprefix("image_encoder."): name for name in stored if "encoder." in name}
    assert eyes
    for rest, name in eyes.items():
        assert model[f"backbone.vision_tower.{rest}"].equal(read(stored[name]))
        assert model[name].equal(read(stored[name]))  # a copy: the original is loaded as well


def test_the_longest_prefix_decides_where_a_weight_is_read() -> None:
    part = "generator.decoder"
    start = dataclasses.replace(
        own_data.pocket().init[0],
        parts=(part,),
        sources={part: "nowhere", f"{part}.layers": "backbone.decoder.layers"},
    )
    config = evolve(own_data.pocket(), {"model.generator": LMFusionConfig()})
    with pytest.raises(UsageError, match=r"1 weights of .* differ") as caught:
        check_start(dataclasses.replace(config, init=(start,)))
    width = config.model.backbone.hidden_size
    expected = f"{part}.norm.weight is [{width}] in this run and missing there (nowhere.norm"
    assert expected in str(caught.value)


def test_image_layers_start_as_copies_of_the_text_layers() -> None:
    config = evolve(own_data.pocket(), {"model.generator": LMFusionConfig()})
    all_else = ("backbone", "image_encoder", "normalizer", "image_decoder")
    init = (
        dataclasses.replace(config.init[0], parts=all_else),
        dataclasses.replace(
            config.init[0],
            parts=("generator.decoder",),
            sources={"generator.decoder": "backbone.decoder"},
        ),
    )
    config = dataclasses.replace(config, init=init)
    check_start(config)
    model = build_model(config)[1].state_dict()
    copies = [name for name in model if name.startswith("generator.decoder.")]
    assert len(copies) > 10
    assert all(model[f"backbone.{n.removeprefix('generator.')}"].equal(model[n]) for n in copies)


def test_a_source_with_weights_of_another_shape_is_named() -> None:
    config = evolve(_with_own_eyes(), {"model.backbone.vision_tower.num_layers": 3})
    with pytest.raises(UsageError) as caught:
        check_start(config)
    assert "missing there (image_encoder.layers.2." in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_source_for_an_unknown_part_is_named_with_its_setting() -> None:
    config = evolve(own_data.pocket(), {"init.0.sources": {"ditt": "generator"}})
    with pytest.raises(UsageError, match=r"init\.0\.sources: 'ditt' names no part"):
        check_start(config)


def test_the_bundled_model_fits_its_own_recipes() -> None:
    check_start(own_data.pocket())
    check_start(pocket.smoke())


def test_a_share_starts_from_the_mean_of_two_models() -> None:
    """The text layers of the bundled model, mixed with its image layers of the same shapes."""
    config = evolve(own_data.pocket(), {"model.generator": LMFusionConfig()})
    part = "generator.decoder.layers"
    first = dataclasses.replace(config.init[0], parts=(part,))
    second = dataclasses.replace(
        first, sources={"generator.decoder": "backbone.decoder"}, share=0.25
    )
    model = build_model(dataclasses.replace(config, init=(first, second)))[1].state_dict()
    stored = open_model("pocket").tensors
    names = [name for name in model if name.startswith(part)]
    assert names
    for name in names:
        image = read(stored[name]).float()
        text = read(stored[name.replace("generator", "backbone", 1)]).float()
        torch.testing.assert_close(model[name].float(), image + 0.25 * (text - image))


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_is_above_zero_and_at_most_one(share: float) -> None:
    with pytest.raises(UsageError, match="share must be above 0 and at most 1"):
        evolve(own_data.pocket(), {"init.0.share": share})
