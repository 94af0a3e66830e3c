"""The configs of a study: changes of a command, and what is refused."""

import dataclasses
from pathlib import Path

import pytest

from blip3o.core.errors import UsageError
from blip3o.core.shard import Shard
from blip3o.study import STUDIES
from blip3o.study.grid import Arm, Study, StudySettings, resolve
from blip3o.study.measures import MethodEvaluation
from blip3o.study.run import seeded

SHARED = Path("shared")


def test_changes_reach_the_study_the_arms_and_the_shared_runs(tiny_study: Study) -> None:
    study = dataclasses.replace(tiny_study, shared={"first": tiny_study.arms[0].config})
    changes = [
        "seeds=[4,5]",
        "evaluation.benchmark.num_questions=7",
        "train.optimizer.lr=0.25",
        "shared.first.train.steps=9",
    ]
    grid = resolve(study, changes, SHARED)
    assert grid.settings.seeds == (4, 5)
    assert grid.settings.evaluation.benchmark.num_questions == 7
    assert {config.train.optimizer.lr for config in grid.arms.values()} == {0.25}
    assert grid.arms["mse"].train.trainable == ("generator",)
    assert (grid.shared["first"].train.steps, grid.arms["flow"].train.steps) == (9, 4)
    assert grid.shared["first"].train.optimizer.lr == 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.step=5", "did you mean train.steps"),
        ("evaluation.num_point=5", "did you mean evaluation.num_points"),
        ("evaluation.num_repeats=1", "num_repeats must be at least 2"),
        ("seeds=[1,1]", "seeds must be different"),
        ("seeds=[]", "at least one"),
        ("train.steps=5", "must be a multiple of evaluation.num_points 2, got 5"),
        ("shared.none.train.steps=5", "unknown config key"),
        ("evaluation.benchmark.batch_size=0", "batch_size must be at least 1"),
    ],
)
def test_bad_changes_are_refused(tiny_study: Study, change: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(tiny_study, [change], SHARED)


def test_arms_of_different_length_are_refused(tiny_study: Study) -> None:
    longer = dataclasses.replace(tiny_study.arms[0], overrides={"train.steps": 8})
    study = dataclasses.replace(tiny_study, arms=(longer, tiny_study.arms[1]))
    with pytest.raises(UsageError, match="equal steps and batches, got flow 8 x 4, mse 4 x 4"):
        resolve(study, [], SHARED)


@pytest.mark.parametrize(("own", "every"), [(1, 1), (2, 2), (3, 4), (500, 4)])
def test_points_of_the_curve_have_checkpoints(tiny_study: Study, own: int, every: int) -> None:
    changes = ["train.steps=8", f"train.checkpoint_every={own}"]
    config = seeded(resolve(tiny_study, changes, SHARED).arms["flow"], 3, num_points=2)
    assert config.train.seed == 3
    assert config.train.keep_every == 4
    assert config.train.checkpoint_every == every


def test_a_path_of_the_data_may_hold_the_seed(tiny_study: Study) -> None:
    changes = ["data.mixture.0.source.path=sets/{seed}/a.jsonl"]
    grid = resolve(tiny_study, changes, SHARED)
    for seed in (3, 4):
        config = seeded(grid.arms["flow"], seed, num_points=2)
        first, second = (entry.source.path for entry in config.data.mixture)
        assert first == f"sets/{seed}/a.jsonl"
        assert second == grid.arms["flow"].data.mixture[1].source.path


def test_measurements_of_another_kind_are_named(tiny_study: Study) -> None:
    with pytest.raises(UsageError, match="did you mean contamination"):
        resolve(tiny_study, ["evaluation.kind=contaminatio"], SHARED)


@pytest.mark.parametrize("text", ["", "1", "1/", "/2", "0/2", "3/2", "1/0", "-1/2", "a/b", "1/2/3"])
def test_bad_shards_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--shard "):
        Shard.parse(text)


def test_a_shard_is_read() -> None:
    assert Shard.parse("2/3") == Shard(number=2, count=3)


@pytest.mark.parametrize("name", STUDIES.names())
def test_every_study_has_valid_runs(name: str) -> None:
    study: Study = STUDIES.get(name)()
    grid = resolve(study, [], SHARED)
    assert study.name == name
    assert set(grid.arms) == {arm.name for arm in study.arms}
    assert len(grid.settings.seeds) >= 3
    tests = [test for claim in study.claims for test in (*claim.held_if, *claim.refuted_if)]
    assert {test.arm for test in tests} | {test.minus for test in tests} <= {*grid.arms, ""}


def test_a_recipe_without_stages_takes_no_folder(tiny_study: Study) -> None:
    config = resolve(tiny_study, [], SHARED).arms["flow"]
    arm = Arm(name="plain", title="Plain", config=lambda: config)
    study = dataclasses.replace(tiny_study, arms=(arm,))
    assert resolve(study, [], SHARED).arms == {"plain": config}


def test_the_start_answers_the_questions_of_the_end() -> None:
    settings = MethodEvaluation()
    assert settings.question_benchmark.num_questions == settings.benchmark.num_questions
    assert settings.question_benchmark.prompts_per_category == 0
    assert StudySettings(evaluation=settings).seeds == (0, 1, 2)
