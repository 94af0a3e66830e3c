"""The report is a function of the result files: stable, and honest about what is missing."""

import dataclasses
import sys
from pathlib import Path

import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.study import claims
from blip3o.study.claims import Claim
from blip3o.study.grid import Arm, Study, StudySettings
from blip3o.study.measures import MethodEvaluation
from blip3o.study.report import write_report
from blip3o.study.results import Failure, Point, Result, read, run_folder, write
from blip3o.train.config import RunConfig

TEXT = """\
# A study

`blip3o study test`: 6 runs, 4 done, 1 diverged, 1 missing.
A value is the mean over the seeds and half the width of its 95 % t-interval; a value
of one run has none. Differences of two arms have Welch intervals.

## Arms

| arm | name | runs done | trained parameters | operations per sample | samples | seconds | CPU seconds |
|---|---|---|---|---|---|---|---|
| First | `a` | 3 | 1,234,567 | 2e+06 | 200 | 20 ± 0 | 30 ± 0 |
| Second | `b` | 1 | 1,234,567 | 2e+06 | 200 | 20 | 30 |

## Scores

| arm | scenes | frechet |
|---|---|---|
| First | 0.8 ± 0.025 | 3 ± 0 |
| Second | 0.5 | 3 |

## Scenes by category

| arm | colors |
|---|---|
| First | 0.25 ± 0 |
| Second | 0.25 |

## Claims

A test passes if the whole interval lies where it says, over at least 3
finished runs of each arm. A claim is open if neither its tests nor those against it
pass.

### T1: held

The first is good.

- held if `scenes` of `a` is above 0.7: 0.8 [0.7752, 0.8248] (interval), passes
- refuted if `scenes` of `a` is below 0.7: 0.8 [0.7752, 0.8248] (interval), does not pass

### T2: open

The first is better.

- held if `scenes` of `a` at 0.5 x the operations of `b` minus `b` is above 0: not known, fewer than 3 runs

## Runs that are not done

- `b`, seed 1: diverged: the loss was NaN
- `b`, seed 2: missing

"""  # noqa: E501


def recipe() -> RunConfig:
    raise AssertionError("a report needs no config")


STUDY = Study(
    name="test",
    title="A study",
    arms=(
        Arm(name="a", title="First", config=recipe),
        Arm(name="b", title="Second", config=recipe),
    ),
    settings=StudySettings(evaluation=MethodEvaluation(sample_prompts=("a cat", "a dog"))),
    claims=(
        Claim(
            name="T1",
            text="The first is good.",
            held_if=(claims.Test(score="scenes", arm="a", is_="above", limit=0.7),),
            refuted_if=(claims.Test(score="scenes", arm="a", is_="below", limit=0.7),),
        ),
        Claim(
            name="T2",
            text="The first is better.",
            held_if=(
                claims.Test(score="scenes", arm="a", minus="b", is_="above", flops_share=0.5),
            ),
        ),
    ),
)


def add(out: Path, arm: str, seed: int, scenes: float) -> None:
    scores = {"scenes": scenes, "scenes/colors": 0.25, "frechet": 3.0}
    points = tuple(
        Point(
            step=n, samples=100 * n, seconds=10 * n, cpu_seconds=15 * n, flops=2e8 * n,
            scores={"scenes": scenes * n / 2},
        )
        for n in (1, 2)
    )  # fmt: skip
    result = Result(
        arm=arm,
        seed=seed,
        status="done",
        trainable_parameters=1234567,
        flops_per_sample=2e6,
        scores=scores,
        points=points,
    )
    folder = run_folder(out, arm, seed)
    (folder / "samples").mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (24, 24), "red").save(folder / f"samples/{number:02d}.png")
    write(folder, result)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for seed, scenes in enumerate((0.79, 0.80, 0.81)):
        add(tmp_path, "a", seed, scenes)
    add(tmp_path, "b", 0, 0.5)
    diverged = dataclasses.replace(
        _result(tmp_path),
        status="diverged",
        reason="the loss was NaN",
        scores={},
        points=(),
        seed=1,
    )
    folder = run_folder(tmp_path, "b", 1)
    folder.mkdir(parents=True)
    write(folder, diverged)
    return tmp_path


def _result(out: Path) -> Result:
    result = read(run_folder(out, "b", 0))
    assert isinstance(result, Result)
    return result


def test_the_text_is_this(out: Path) -> None:
    write_report(STUDY, STUDY.settings, out)
    text = (out / "report.md").read_text()
    assert text.startswith(TEXT)
    assert text[len(TEXT) :].count("![") == 2


def test_a_report_depends_on_the_result_files_only(out: Path) -> None:
    names = ("report.md", "curves.png", "samples.png")
    write_report(STUDY, STUDY.settings, out)
    first = {name: (out / name).read_bytes() for name in names}
    write_report(STUDY, STUDY.settings, out)
    assert {name: (out / name).read_bytes() for name in names} == first
    with Image.open(out / "samples.png") as sheet:
        assert sheet.width > 2 * 144


def test_a_report_of_nothing(tmp_path: Path) -> None:
    write_report(STUDY, STUDY.settings, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "6 runs, 6 missing" in text
    assert "| First | `a` | 0 | - | - | - | - | - |" in text
    assert text.count(": open\n") == 2
    assert "![" not in text
    assert [one.name for one in tmp_path.iterdir()] == ["report.md"]


def test_a_report_without_matplotlib_has_no_curves(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write_report(STUDY, STUDY.settings, out)
    assert "curves.png" not in (out / "report.md").read_text()
    assert not (out / "curves.png").exists()


def test_a_failure_is_reported_until_the_run_has_a_result(out: Path) -> None:
    folder = run_folder(out, "b", 2)
    folder.mkdir(parents=True)
    write(folder, Failure(arm="b", seed=2, reason="OSError: the disk is full"))
    write_report(STUDY, STUDY.settings, out)
    text = (out / "report.md").read_text()
    assert "4 done, 1 diverged, 1 failed." in text
    assert "- `b`, seed 2: failed: OSError: the disk is full" in text
    write(folder, dataclasses.replace(_result(out), seed=2))
    write_report(STUDY, dataclasses.replace(STUDY.settings, seeds=(2,)), out)
    assert "failed" not in (out / "report.md").read_text()


@pytest.mark.parametrize("text", ["", "{}", '{"arm": "b"', '{"arm": "b", "seed": "x"}'])
def test_a_damaged_result_is_named(out: Path, text: str) -> None:
    file = run_folder(out, "b", 0) / "result.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=f"^{file} is not the result of a run: "):
        write_report(STUDY, STUDY.settings, out)


def test_arms_without_sample_images_are_left_out_of_the_sheet(out: Path) -> None:
    write_report(STUDY, STUDY.settings, out)
    with Image.open(out / "samples.png") as sheet:
        whole = sheet.height
    (run_folder(out, "b", 0) / "samples/01.png").unlink()
    write_report(STUDY, STUDY.settings, out)
    with Image.open(out / "samples.png") as sheet:
        assert sheet.height < whole
