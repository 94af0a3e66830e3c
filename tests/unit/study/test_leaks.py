"""The halves of a benchmark, the tuning sets, and a tiny study of real parts."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from blip3o.data.mixture import MixtureEntry
from blip3o.data.scenes.heldout import heldout_compositions, heldout_of
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.eval.scene_detector import detect
from blip3o.eval.scene_rules import WantedThing, judge_scene
from blip3o.eval.scenes import ScenesBenchmark
from blip3o.study import contamination, leaks
from blip3o.study.contamination import LEAKS, TUNING
from blip3o.study.grid import Arm, Study, StudySettings
from blip3o.study.leaks import (
    CLEAN,
    PARTS,
    LeakEvaluation,
    benchmark_parts,
    benchmark_prompts,
    leaked_compositions,
    part_scores,
    side_of,
    tool_scores,
)
from blip3o.study.results import Items, Result, read, run_folder
from blip3o.study.start import run_study
from blip3o.study.tuning_sets import Leak, LeakKind, TuningSets, write_prompts, write_tuning_set
from blip3o.train.config import RunConfig

BENCHMARK = ScenesBenchmark(wording_prompts_per_category=12, images_per_prompt=1, batch_size=8)
RECORDS = 200
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def sets() -> TuningSets:
    return TuningSets(BENCHMARK, 0, RECORDS)


def test_half_of_the_compositions_of_each_kind_leak() -> None:
    whole = Counter(kind for kind, *_ in heldout_compositions())
    assert set(whole) == {"color", "pair", "count", "background"}
    for seed in SEEDS:
        half = Counter(kind for kind, *_ in leaked_compositions(seed))
        assert half == {kind: count // 2 for kind, count in whole.items()}
    assert leaked_compositions(0) == leaked_compositions(0)
    assert len({leaked_compositions(seed) for seed in SEEDS}) == len(SEEDS)


def test_the_halves_are_stable() -> None:
    """Other halves would be another benchmark."""
    assert {one[0]: one for one in sorted(leaked_compositions(0), key=str)} == {
        "background": ("background", "turtle", "striped"),
        "color": ("color", "umbrella", "black"),
        "count": ("count", "square", 4),
        "pair": ("pair", "shoe", "square"),
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_no_prompt_and_no_composition_is_in_both_halves(seed: int) -> None:
    leaked = leaked_compositions(seed)
    shown: dict[str, set[object]] = {"leaked": set(), "twin": set()}
    for prompt in benchmark_prompts(BENCHMARK):
        side = side_of(prompt, leaked)
        assert prompt.heldout, prompt.prompt
        if side is not None:
            shown[side] |= {*prompt.heldout}
    assert shown["leaked"]
    assert shown["twin"]
    assert not shown["leaked"] & shown["twin"]
    parts = benchmark_parts(BENCHMARK, seed)
    texts = {part: {item.prompt for item in parts[part]} for part in PARTS}
    assert not texts["leaked"] & texts["twin"]
    assert not texts["familiar"] & (texts["leaked"] | texts["twin"])


def test_the_noise_of_a_prompt_does_not_depend_on_the_halves() -> None:
    numbers: dict[str, int] = {}
    for seed in SEEDS:
        for items in benchmark_parts(BENCHMARK, seed).values():
            for item in items:
                assert numbers.setdefault(item.prompt, item.number) == item.number
    assert len(set(numbers.values())) == len(numbers)


@pytest.mark.parametrize("kind", ["shape", "exact"])
@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 1.0])
def test_the_rate_of_a_leak_is_exact(sets: TuningSets, kind: LeakKind, rate: float) -> None:
    examples = sets.examples(Leak(kind=kind, rate=rate))
    assert len(examples) == RECORDS
    assert sum(one.is_leaked for one in examples) == rate * RECORDS


def test_a_larger_leak_holds_a_smaller_one_and_keeps_the_other_records(sets: TuningSets) -> None:
    none, few, many = (sets.examples(Leak(kind="shape", rate=rate)) for rate in (0, 0.1, 0.5))
    for clean, small, large in zip(none, few, many, strict=True):
        assert not clean.is_leaked
        assert small == (large if small.is_leaked else clean)
        assert large.is_leaked or large == clean
    assert TuningSets(BENCHMARK, 0, RECORDS).examples(Leak(kind="shape", rate=0.5)) == many
    assert TuningSets(BENCHMARK, 1, RECORDS).examples(Leak(kind="shape", rate=0.5)) != many


@pytest.mark.parametrize("kind", ["shape", "exact"])
def test_no_twin_enters_training(sets: TuningSets, kind: LeakKind) -> None:
    """Neither its sentence nor one of its compositions, in a caption or in an image."""
    leaked = leaked_compositions(0)
    sentences = {
        part: {item.prompt for item in benchmark_parts(BENCHMARK, 0)[part]} for part in PARTS
    }
    examples = sets.examples(Leak(kind=kind, rate=0.5))
    for one in examples:
        assert one.prompt not in sentences["twin"] | sentences["familiar"]
        shown = {*heldout_of(one.scene)}
        assert shown <= (leaked if one.is_leaked else set())
        if one.is_leaked:
            assert shown
            assert (one.prompt in sentences["leaked"]) == (kind == "exact")


def test_the_shape_has_all_categories(sets: TuningSets) -> None:
    categories = Counter(prompt.category for prompt in sets._prompts["shape"])
    assert len(categories) == 8
    assert len(set(categories.values())) == 1


def test_written_images_show_their_prompts(sets: TuningSets, tmp_path: Path) -> None:
    file = tmp_path / "exact.jsonl"
    write_tuning_set(sets, Leak(kind="exact", rate=0.2), 96, file)
    prompts = {one.prompt: one for one in benchmark_prompts(BENCHMARK)}
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == RECORDS
    right = []
    for row in rows:
        image = tmp_path / row["image"]
        assert image.exists()
        if row["is_leaked"]:
            prompt = prompts[row["caption"]]
            wanted = [WantedThing(**one) for one in prompt.include]
            found = detect(Image.open(image).convert("RGB"))
            right.append(judge_scene(found, wanted, prompt.relation))
    assert len(right) == 40
    assert sum(right) >= 39  # the detector is nearly exact
    before = file.stat().st_mtime_ns
    write_tuning_set(sets, Leak(kind="exact", rate=0.2), 96, file)
    assert file.stat().st_mtime_ns == before


def test_the_tool_finds_exact_prompts_and_no_clean_record(sets: TuningSets, tmp_path: Path) -> None:
    write_prompts(BENCHMARK, tmp_path)
    file = tmp_path / "set.jsonl"
    write_tuning_set(sets, Leak(kind="exact", rate=0.1), 16, file)
    scores = tool_scores(JsonlConfig(path=str(file), name="set"))
    assert scores["leak_share"] == 0.1
    assert scores["leak_found"] == 1.0
    assert scores["false_alarms"] < 0.05


def test_scores_are_means_of_categories() -> None:
    items: Items = {
        "leaked/a": (1.0, 1.0, 1.0, 1.0),
        "leaked/b": (0.0, 1.0),
        "twin/a": (0.5,),
        "twin/b": (0.0, 0.0, 0.0),
        "familiar/a": (1.0,),
    }
    assert part_scores(items) == {
        "leaked": 0.75,
        "twin": 0.25,
        "familiar": 1.0,
        "inflation": 0.5,
        "wording": -0.75,
    }


@pytest.fixture(scope="module")
def study(flow_config: RunConfig) -> Study:
    """The study itself with a tiny model: two arms, one seed, sixteen records."""

    def tuned(name: str, shared: Path) -> RunConfig:
        source = JsonlConfig(path=str(shared / TUNING / "{seed}" / f"{name}.jsonl"), name=TUNING)
        mixture = (MixtureEntry(source=source, task="text_to_image"),)
        return dataclasses.replace(
            flow_config,
            data=dataclasses.replace(flow_config.data, mixture=mixture),
            objectives=flow_config.objectives[:1],
        )

    return dataclasses.replace(
        contamination.contamination(),
        arms=(
            Arm(name=CLEAN, title="no leak", config=lambda shared: tuned(CLEAN, shared)),
            Arm(name="shape_10", title="shape", config=lambda shared: tuned("shape_10", shared)),
        ),
        settings=StudySettings(
            seeds=(3,),
            evaluation=LeakEvaluation(
                benchmark=dataclasses.replace(BENCHMARK, wording_prompts_per_category=3),
                sample_prompts=("a red cat",),
            ),
        ),
        section=None,
    )


@pytest.fixture(scope="module")
def whole(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("leaks") / "study"
    assert run_study(study, out)
    return out


def result(out: Path, arm: str) -> Result:
    found = read(run_folder(out, arm, 3))
    assert isinstance(found, Result)
    return found


def test_a_run_keeps_the_score_of_every_prompt(whole: Path, study: Study) -> None:
    clean, leak = result(whole, CLEAN), result(whole, "shape_10")
    parts = benchmark_parts(study.settings.evaluation.benchmark, 3)
    for part, items in parts.items():
        groups = Counter(f"{part}/{item.category}" for item in items)
        for run in (clean, leak):
            assert {n: len(v) for n, v in run.items.items() if n.startswith(part)} == groups
    started = {name for name in clean.items if name.startswith("start_")}
    assert started == {f"start_{name}" for name in leak.items}
    assert {"leaked", "twin", "familiar", "inflation", "start_twin"} <= clean.scores.keys()
    assert (clean.scores["leak_share"], leak.scores["leak_share"]) == (0.0, 2 / 16)
    assert "leak_found" not in clean.scores


def test_each_record_is_seen_once(whole: Path) -> None:
    """So the rate of the set is that of the training, too."""
    lines = (whole / "shared" / TUNING / "3" / "shape_10.jsonl").read_text().splitlines()
    assert len(lines) == 16
    config = (run_folder(whole, "shape_10", 3) / "train/config.yaml").read_text()
    assert f"shared/{TUNING}/3/shape_10.jsonl" in config


def test_a_stopped_study_goes_on_to_the_same_numbers(
    whole: Path, study: Study, tmp_path: Path
) -> None:
    """Stops it between the list of a tuning set and the next, and in a measurement."""
    out = tmp_path / "study"

    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    def stopped_at_a_leak(sets: TuningSets, leak: Leak, px: int, file: Path) -> None:
        (stopped if leak.rate else write_tuning_set)(sets, leak, px, file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contamination, "write_tuning_set", stopped_at_a_leak)
        with pytest.raises(KeyboardInterrupt):
            run_study(study, out)
    written = out / "shared" / TUNING / "3" / f"{CLEAN}.jsonl"
    before = written.stat().st_mtime_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaks, "tool_scores", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_study(study, out)
    assert read(run_folder(out, CLEAN, 3)) is None
    assert run_study(study, out)
    assert written.stat().st_mtime_ns == before
    for arm in (CLEAN, "shape_10"):
        one, other = result(out, arm), result(whole, arm)
        assert (one.scores, one.items) == (other.scores, other.items)


def test_the_study_has_the_asked_rates() -> None:
    records = contamination.STEPS * contamination.BATCH
    shapes = [leak.rate for leak in LEAKS.values() if leak.kind == "shape"]
    assert shapes == [0.0, 0.01, 0.1, 1.0]
    assert all((leak.rate * records).is_integer() for leak in LEAKS.values())
