"""Scores samples that are there already: layouts with remarks, a map in a file, lost files."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Benchmark, Item, Row, Sample, Scorer, Scores, Verdict
from blip3o.eval.geneval2 import GenEval2Benchmark
from blip3o.eval.grids import GridLayout
from blip3o.eval.models import Asked, Output
from blip3o.eval.report.results import Results
from blip3o.eval.stages import evaluate, score_folder
from blip3o.remote.chat import Answer, ChatRequest


class Brightness:
    """Scores an image by its red."""

    judge, batch_size = "brightness", 4

    def verdicts(self, samples: Sequence[Sample]) -> Iterator[Verdict]:
        for one in samples:
            red = np.asarray(one.drawing)[0, 0, 0] / 255
            yield Verdict(
                item=one.item.id,
                number=one.number,
                sha256=one.sha256,
                judge=self.judge,
                score=red,
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bright(Benchmark):
    """The mean of the scores, which has no figures in resamples unless `has_intervals`."""

    has_intervals: bool = True

    def items(self) -> list[Item]:
        return [Item(id=f"i{number}", number=number, num_samples=2) for number in range(4)]

    def scorer(self) -> Scorer:
        return Brightness()

    def reduce(self, rows: Sequence[Row]) -> Scores:
        return Scores(
            overall=sum(row.score_or(self.worst_score) for row in rows) / len(rows), by_category={}
        )

    def resampled(self, rows: Sequence[Row]) -> Scores:
        return self.reduce(rows) if self.has_intervals else Scores(overall=None, by_category={})

    def layout(self) -> GridLayout:
        return GridLayout(columns=2, rows=1, tile_px=64)


def drawn(folder: Path, *reds: int) -> Path:
    """Writes a grid for each item and a file that belongs to none."""
    folder.mkdir()
    for item, red in zip(Bright().items(), reds, strict=False):
        samples = [
            Sample(
                item=item, number=n, sha256="", image=Image.new("RGB", (64, 64), (red + n, n, 0))
            )
            for n in range(2)
        ]
        Bright().layout().write(folder, samples)
    (folder / "notes.txt").write_text("")
    return folder


def test_remarks_of_a_layout_reach_the_results(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "grids", 0, 100, 250)
    results = score_folder("bright", Bright(), folder, tmp_path / "out", allow_missing=True)
    assert results is not None
    assert list(results.notes[:2]) == [
        "grids: 1 items have no file: i3",
        "grids: 1 files belong to no item, and are passed over: notes.txt",
    ]
    assert results.outcomes == {"judged": 6, "missing": 2}
    assert Results.read(tmp_path / "out") == results


@pytest.mark.parametrize("has_intervals", [True, False])
def test_intervals_are_those_of_the_resampled_figures(tmp_path: Path, has_intervals: bool) -> None:
    folder = drawn(tmp_path / "grids", 0, 100, 150, 250)
    benchmark = Bright(has_intervals=has_intervals)
    results = score_folder("bright", benchmark, folder, tmp_path / "out")
    assert results is not None
    assert (results.intervals.overall is not None) == has_intervals


class Yes:
    """A judge that says yes with the probability 1/2."""

    name = "half"

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Answer]]:
        for number in range(len(requests)):
            yield number, Answer(outcome="answered", text="Yes", first_token=(("Yes", -0.693147),))


@dataclasses.dataclass(frozen=True, kw_only=True)
class YesJudge:
    kind: str = "yes"

    def build(self) -> Yes:
        return Yes()


def test_geneval2_is_scored_from_its_map_of_images(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    lines = [
        {"prompt": p, "atom_count": 1, "vqa_list": [["Is it?", "Yes"]], "skills": ["object"]}
        for p in ("a dog", "a cat", "a cow")
    ]
    data.write_text("\n".join(map(json.dumps, lines)))
    benchmark = GenEval2Benchmark(data=str(data), changed_prompts=True, judge=YesJudge())
    for name in ("dog", "cat"):
        Image.new("RGB", (70, 70), (len(name), ord(name[0]), 9)).save(tmp_path / f"{name}.png")
    file = tmp_path / "map.json"
    file.write_text(json.dumps({"a dog": "dog.png", "a cat": "cat.png"}))
    with pytest.raises(UsageError, match=r"map.json lacks 1 of 3 samples, such as 002 number 0"):
        score_folder("geneval2", benchmark, file, tmp_path / "out")
    results = score_folder("geneval2", benchmark, file, tmp_path / "out", allow_missing=True)
    assert results is not None
    assert results.overall == pytest.approx(100 * (0.5 + 0.5 + 0) / 3, rel=1e-4)
    assert results.notes[0].startswith("1 prompts have no image, such as 'a cow'")
    assert results.model["folder"] == "map.json"

    # A file that the map names and that is not there is a missing sample.
    file.write_text(json.dumps({"a dog": "dog.png", "a cat": "cat.png", "a cow": "cow.png"}))
    with pytest.raises(UsageError, match=r"1 of 3 samples are missing .*002 number 0 .*cow.png"):
        score_folder("geneval2", benchmark, file, tmp_path / "second")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keyless(Bright):
    def scorer(self) -> Scorer:
        raise UsageError("set the key")


class Painter:
    identity, sampler = {"name": "painter"}, {"steps": 1}

    def outputs(self, task: str, asked: Sequence[Asked]) -> list[Output]:
        raise AssertionError("a sample was drawn")


def test_a_judge_that_cannot_be_built_is_found_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="set the key"):
        evaluate("keyless", Keyless(), Painter(), tmp_path)
