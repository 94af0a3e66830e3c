"""The stages of an evaluation: their files, shards, interruptions and faulty samples."""

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest
from PIL import Image

from blip3o import Blip3oPipeline
from blip3o.core.errors import UsageError
from blip3o.core.lock import locked
from blip3o.core.shard import Shard
from blip3o.eval.benchmark import Benchmark, Item, Outcome, Row, Sample, Scores, Verdict
from blip3o.eval.models import Asked, Output, PipelineModel, Refused
from blip3o.eval.plan import Plan, read_plan
from blip3o.eval.report.results import Results
from blip3o.eval.scenes import ScenesBenchmark
from blip3o.eval.stages import evaluate, score_folder

SCENES = ScenesBenchmark(
    prompts_per_category=1,
    images_per_prompt=2,
    num_questions=5,
    num_captions=2,
    num_edits=2,
    num_reconstructions=2,
    wording_prompts_per_category=0,
    num_wording_questions=0,
    num_wording_edits=0,
    batch_size=3,
    num_inference_steps=2,
)


def files_of(out: Path) -> dict[str, bytes]:
    """Returns the files of an evaluation; those of locks are not part of it."""
    return {
        str(file.relative_to(out)): file.read_bytes()
        for file in sorted(out.rglob("*"))
        if file.is_file() and ".lock" not in file.name
    }


@pytest.fixture(scope="module")
def model(tiny_pipe: Blip3oPipeline) -> PipelineModel:
    return PipelineModel(tiny_pipe, "tiny", SCENES)


@pytest.fixture(scope="module")
def whole(model: PipelineModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken evaluation."""
    out = tmp_path_factory.mktemp("eval") / "whole"
    assert evaluate("scenes", SCENES, model, out) is not None
    return out


def test_the_files_of_an_evaluation_hold_everything_that_shaped_it(whole: Path) -> None:
    results = json.loads((whole / "results.json").read_text())
    assert results["title"] == "scenes(scene-detector-1)"
    assert results["num_samples"] == 6 * 2 + 5 + 2 + 2 + 2
    assert results["outcomes"] == {"judged": results["num_samples"]}
    plan = read_plan(whole)
    assert results["items_sha256"] == plan.sha256
    assert results["seed"] == SCENES.seed
    assert results["sampler"]["num_inference_steps"] == 2
    assert results["model"]["name"] == "tiny"
    assert (whole / "samples" / "prompt-0000" / "1.png").exists()
    assert (whole / "samples" / "question-0000" / "0.txt").exists()
    assert (whole / "report.html").exists()


@pytest.mark.parametrize("count", [2, 3])
def test_shards_write_the_files_of_one_process(
    model: PipelineModel, whole: Path, tmp_path: Path, count: int
) -> None:
    for number in range(count, 0, -1):
        found = evaluate("scenes", SCENES, model, tmp_path, Shard(number, count))
        assert (found is not None) == (number == 1)
    assert files_of(tmp_path) == files_of(whole)


def test_a_second_call_changes_nothing_and_draws_nothing(
    model: PipelineModel, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(whole, out)
    monkeypatch.setattr(model, "outputs", lambda task, asked: pytest.fail("a sample was drawn"))
    assert evaluate("scenes", SCENES, model, out) is not None
    assert files_of(out) == files_of(whole)


def test_removed_samples_and_verdicts_come_back_equal(
    model: PipelineModel, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(whole, out)
    (out / "samples" / "prompt-0002" / "1.png").unlink()
    shutil.rmtree(out / "samples" / "edit-0001")
    verdicts = (out / "verdicts.jsonl").read_bytes()
    (out / "verdicts.jsonl").write_bytes(verdicts[: len(verdicts) // 2])  # a line is cut
    assert evaluate("scenes", SCENES, model, out) is not None
    assert files_of(out) == files_of(whole)


def forked(act: Callable[[], object]) -> ForkProcess:
    process = multiprocessing.get_context("fork").Process(target=act)
    process.start()
    return process


def test_shards_may_run_at_the_same_time(model: PipelineModel, whole: Path, tmp_path: Path) -> None:
    processes = [
        forked(lambda number=number: evaluate("scenes", SCENES, model, tmp_path, Shard(number, 3)))
        for number in (1, 2, 3)
    ]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert files_of(tmp_path) == files_of(whole)


def test_kills_at_random_moments_do_not_change_a_byte(
    model: PipelineModel, whole: Path, tmp_path: Path
) -> None:
    start = time.monotonic()
    evaluate("scenes", SCENES, model, tmp_path / "timed")
    seconds = time.monotonic() - start
    out, draw, kills = tmp_path / "killed", random.Random(0), 0
    while kills < 20:
        process = forked(lambda: evaluate("scenes", SCENES, model, out))
        process.join(draw.uniform(0.0, 0.7 * seconds))
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        if (out / "results.json").exists():  # start again: all moments are tried
            assert files_of(out) == files_of(whole)
            shutil.rmtree(out)
    assert evaluate("scenes", SCENES, model, out) is not None
    assert files_of(out) == files_of(whole)


def test_other_settings_in_the_same_folder_are_refused(
    tiny_pipe: Blip3oPipeline, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(whole, out)
    more = dataclasses.replace(SCENES, num_edits=3)
    with pytest.raises(UsageError, match=r"items.jsonl belongs to other settings.*another --out$"):
        evaluate("scenes", more, PipelineModel(tiny_pipe, "tiny", more), out)
    steps = dataclasses.replace(SCENES, num_inference_steps=1)
    with pytest.raises(UsageError, match=r"another sampler\).*another --out$"):
        evaluate("scenes", steps, PipelineModel(tiny_pipe, "tiny", steps), out)
    with pytest.raises(UsageError, match="another model"):
        evaluate("scenes", SCENES, PipelineModel(tiny_pipe, "other", SCENES), out)
    assert files_of(out) == files_of(whole)


def test_a_changed_plan_is_refused(model: PipelineModel, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(whole, out)
    text = (out / "items.jsonl").read_text()
    (out / "items.jsonl").write_text(text.replace("what", "That", 1).replace("a ", "A ", 1))
    with pytest.raises(UsageError, match="was changed"):
        evaluate("scenes", SCENES, model, out)


def test_a_changed_sample_is_judged_again(
    model: PipelineModel, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(whole, out)
    Image.new("RGB", (96, 96), "red").save(out / "samples" / "prompt-0000" / "0.png")
    evaluate("scenes", SCENES, model, out)
    before, after = (
        [json.loads(line)["sha256"] for line in (folder / "verdicts.jsonl").open()]
        for folder in (whole, out)
    )
    assert [a == b for a, b in zip(before, after, strict=True)] == [False] + [True] * 22


def test_images_of_an_evaluation_are_scored_like_the_evaluation(
    whole: Path, tmp_path: Path
) -> None:
    results = score_folder("scenes", SCENES, whole, tmp_path)
    assert results is not None
    assert results == Results.read(whole)


def test_missing_and_broken_images_are_refused_or_count_as_failures(
    whole: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(whole, images)
    (images / "samples" / "prompt-0001" / "0.png").unlink()
    with pytest.raises(UsageError, match=r"lacks 1 of 23 samples, such as prompt-0001 number 0"):
        score_folder("scenes", SCENES, images, tmp_path / "a")
    broken = images / "samples" / "prompt-0002" / "1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    shutil.copy(whole / "samples/prompt-0001/0.png", images / "samples/prompt-0001/0.png")
    with pytest.raises(UsageError, match=r"1 of 23 samples are missing or broken, such as prompt"):
        score_folder("scenes", SCENES, images, tmp_path / "b")
    results = score_folder("scenes", SCENES, images, tmp_path / "b", allow_missing=True)
    assert results is not None
    assert results.outcomes == {"broken": 1, "judged": 22}
    assert any("1 broken of 23 samples count as failures" in note for note in results.notes)


def test_samples_of_other_items_are_refused_and_leave_no_trace(whole: Path, tmp_path: Path) -> None:
    other = dataclasses.replace(SCENES, seed=7)
    with pytest.raises(UsageError, match="holds samples of other prompts or settings"):
        score_folder("scenes", other, whole, tmp_path)
    assert score_folder("scenes", SCENES, whole, tmp_path) is not None


def test_a_folder_of_another_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        score_folder("scenes", SCENES, tmp_path / "none", tmp_path / "out")
    with pytest.raises(UsageError, match="is not an evaluation folder"):
        score_folder("scenes", SCENES, tmp_path, tmp_path / "out")


def test_a_second_evaluation_into_a_folder_is_refused(model: PipelineModel, tmp_path: Path) -> None:
    with (
        locked(tmp_path / ".lock"),
        pytest.raises(UsageError, match=r"^process \d+ on .* evaluates into .*another --out$"),
    ):
        evaluate("scenes", SCENES, model, tmp_path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grading(Benchmark):
    """Grades images by a table of (outcome, score), in the order of the items.

    Args:
        grades: outcome and score of each item.
        judge: name of the judge.
    """

    grades: tuple[tuple[Outcome, float | None], ...] = ()
    judge: str = "teacher"

    def items(self) -> list[Item]:
        return [
            Item(id=f"item-{number}", number=number, prompt="a", category="only")
            for number in range(len(self.grades))
        ]

    def scorer(self) -> "Teacher":
        return Teacher(self)

    def reduce(self, rows: Sequence[Row]) -> Scores:
        marks = [0.0 if row.verdict is None else row.verdict.score or 0.0 for row in rows]
        return Scores(overall=sum(marks) / len(marks), by_category={})


class Teacher:
    batch_size = 2

    def __init__(self, grading: Grading) -> None:
        self.judge = grading.judge
        self._grades = grading.grades

    def verdicts(self, samples: Sequence[Sample]) -> Iterator[Verdict]:
        for sample in reversed(samples):
            outcome, score = self._grades[sample.item.number]
            yield Verdict(
                item=sample.item.id,
                number=sample.number,
                sha256=sample.sha256,
                judge=self.judge,
                outcome=outcome,
                score=score,
            )


class Painter:
    """Paints a square, or refuses the items whose numbers are given."""

    def __init__(self, *refused: int) -> None:
        self.identity, self.sampler = {"name": "painter"}, {"batch_size": 1}
        self._refused = refused

    def outputs(self, task: str, asked: Sequence[Asked]) -> list[Output]:
        del task
        return [
            Refused("I do not paint this")
            if one.job.item.number in self._refused
            else Image.new("RGB", (64, 64), (one.job.item.number, 0, 0))
            for one in asked
        ]


def test_a_sample_without_judgement_leaves_no_headline(tmp_path: Path) -> None:
    judged, failed = (("judged", 1.0), ("judged", 0.5)), (("refusal", None), ("unreadable", None))
    results = evaluate("grading", Grading(grades=(*judged, *failed)), Painter(), tmp_path)
    assert results is not None
    assert results.overall is None
    assert results.outcomes == {"judged": 2, "refusal": 1, "unreadable": 1}
    assert results.notes == (
        "2 of 4 samples have no judgement (1 refusal, 1 unreadable): the headline is open, "
        "at least 0.375; a program that leaves them out says 0.75.",
    )


def test_only_transport_errors_are_asked_again(tmp_path: Path) -> None:
    first = Grading(grades=(("transport", None), ("refusal", None), ("judged", 1.0)))
    evaluate("grading", first, Painter(), tmp_path)
    better = Grading(grades=(("judged", 1.0), ("judged", 1.0), ("judged", 0.0)))
    results = evaluate("grading", better, Painter(), tmp_path)
    assert results is not None
    assert results.outcomes == {"judged": 2, "refusal": 1}
    assert "a program that leaves them out says 1" in results.notes[0]


def test_an_image_that_the_model_refuses_is_its_failure(tmp_path: Path) -> None:
    grading = Grading(grades=(("judged", 1.0), ("judged", 1.0)))
    results = evaluate("grading", grading, Painter(1), tmp_path)
    assert results is not None
    assert results.overall == 0.5
    assert results.outcomes == {"judged": 1, "missing": 1}
    last = json.loads((tmp_path / "verdicts.jsonl").read_text().splitlines()[1])
    assert last["data"] == {"reason": "I do not paint this"}


def test_verdicts_of_another_judge_are_refused(tmp_path: Path) -> None:
    grades: tuple[tuple[Outcome, float | None], ...] = (("judged", 1.0),)
    evaluate("grading", Grading(grades=grades), Painter(), tmp_path)
    with pytest.raises(UsageError, match="holds verdicts of teacher, not of pupil"):
        evaluate("grading", Grading(grades=grades, judge="pupil"), Painter(), tmp_path)


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".a", "a b"])
def test_a_name_of_an_item_that_is_no_file_name_is_a_fault(name: str) -> None:
    with pytest.raises(ValueError, match="name of an item"):
        Plan((Item(id=name, number=0),))
