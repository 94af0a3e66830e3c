"""Runs of a study: resumed, shared between processes, and recorded whatever happens."""

import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from blip3o.core.errors import PreemptedError, UsageError
from blip3o.core.shard import Shard
from blip3o.study import measures
from blip3o.study.claims import decide
from blip3o.study.grid import Arm, Study
from blip3o.study.report import Records
from blip3o.study.results import Failure, Result, read, run_folder
from blip3o.study.start import run_study
from blip3o.train.claim import claimed

FIRST = Shard(1, 4)
RUNS = [("flow", 0), ("mse", 0), ("flow", 1), ("mse", 1)]


@pytest.fixture(scope="module")
def whole(tiny_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study after one undisturbed call."""
    out = tmp_path_factory.mktemp("whole") / "study"
    assert run_study(tiny_study, out)
    return out


def numbers(out: Path, runs: Sequence[tuple[str, int]] = RUNS) -> dict[str, Any]:
    """Returns the content of result files, except timings."""
    found: dict[str, Any] = {}
    for arm, seed in runs:
        data = json.loads((run_folder(out, arm, seed) / "result.json").read_text())
        for point in data["points"]:
            assert point.pop("seconds") > 0
            assert point.pop("cpu_seconds") > 0
        found[f"{arm} {seed}"] = data
    return found


def test_every_run_has_a_result(whole: Path) -> None:
    for arm, seed in RUNS:
        result = read(run_folder(whole, arm, seed))
        assert isinstance(result, Result)
        assert (result.arm, result.seed, result.status) == (arm, seed, "done")
        assert [point.step for point in result.points] == [2, 4]
        assert [point.samples for point in result.points] == [8, 16]
        assert result.points[-1].flops == 16 * result.flops_per_sample > 0
        assert {"scenes", "questions_change", "frechet", "psnr"} <= set(result.scores)
        assert result.scores["scenes"] == result.points[-1].scores["scenes"]
        train = run_folder(whole, arm, seed) / "train"
        assert (train / "model" / "model.safetensors").exists()
        assert not (train / "checkpoints").exists()


def test_what_is_measured_fits_the_arms(whole: Path) -> None:
    """Only one arm trains the backbone; only that one draws a prompt in several ways."""
    flow, mse = (read(run_folder(whole, arm, 0)) for arm in ("flow", "mse"))
    assert isinstance(flow, Result)
    assert isinstance(mse, Result)
    assert mse.trainable_parameters < flow.trainable_parameters
    assert mse.flops_per_sample < flow.flops_per_sample
    assert mse.scores["text_change"] == 0 < flow.scores["text_change"]
    assert mse.scores["feature_diversity"] < 1e-6 < flow.scores["feature_diversity"]
    assert mse.scores["image_diversity"] > 0.1  # the image decoder has noise of its own


def test_seeds_differ(whole: Path) -> None:
    first, second = (read(run_folder(whole, "flow", seed)) for seed in (0, 1))
    assert isinstance(first, Result)
    assert isinstance(second, Result)
    assert first.scores["frechet"] != second.scores["frechet"]


def test_a_finished_run_is_left_alone(
    whole: Path, tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = numbers(whole)
    done: list[object] = []
    monkeypatch.setattr("blip3o.study.start.complete", lambda *run: done.append(run))
    assert run_study(tiny_study, whole)
    assert not done
    assert numbers(whole) == before


def test_stopped_runs_go_on_to_the_same_numbers(
    whole: Path, tiny_study: Study, tmp_path: Path
) -> None:
    """Stops a run in its training, and then in its measurements."""
    out = tmp_path / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stopping_after(3, torch.optim.AdamW.step))
        with pytest.raises(PreemptedError):
            run_study(tiny_study, out, shard=FIRST)
    assert (out / "runs/flow/seed-0/train/checkpoints").exists()
    assert read(run_folder(out, "flow", 0)) is None
    assert "4 missing" in (out / "report.md").read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "at_the_end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_study(tiny_study, out, shard=FIRST)
    assert run_study(tiny_study, out, shard=FIRST)
    assert numbers(out, RUNS[:1]) == numbers(whole, RUNS[:1])


def stopping_after(step: int, plain: Callable[..., Any]) -> Callable[..., Any]:
    """Returns an optimizer step that asks its own process to stop."""
    done = 0

    def stopping(self: torch.optim.AdamW, *arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, *arguments)

    return stopping


def interrupted(*arguments: object) -> Mapping[str, float]:
    raise KeyboardInterrupt


def test_a_killed_run_goes_on_to_the_same_numbers(
    whole: Path, tiny_study: Study, tmp_path: Path
) -> None:
    out = tmp_path / "study"

    def work() -> None:
        plain = torch.optim.AdamW.step

        def slow(self: torch.optim.AdamW, *arguments: Any) -> Any:
            time.sleep(0.2)
            return plain(self, *arguments)

        pytest.MonkeyPatch().setattr(torch.optim.AdamW, "step", slow)
        run_study(tiny_study, out, shard=FIRST)

    process = get_context("fork").Process(target=work)
    process.start()
    pointer = out / "runs/flow/seed-0/train/latest"
    end = time.monotonic() + 120
    while not pointer.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.join()
    assert read(run_folder(out, "flow", 0)) is None
    assert run_study(tiny_study, out, shard=FIRST)
    assert numbers(out, RUNS[:1]) == numbers(whole, RUNS[:1])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shards_share_the_runs(
    tiny_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    done: list[tuple[str, int]] = []
    monkeypatch.setattr(
        "blip3o.study.start._do", lambda grid, out, arm, seed: done.append((arm, seed))
    )
    for number in range(1, count + 1):
        run_study(tiny_study, tmp_path, shard=Shard(number, count))
    assert sorted(done) == sorted(RUNS)
    if count == 1:
        assert done == RUNS  # seed by seed


def test_a_run_of_another_process_is_left_out(
    tiny_study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_folder(tmp_path, "mse", 0)
    with claimed(folder):
        assert not run_study(tiny_study, tmp_path, shard=Shard(2, 4))
    assert "left out: process" in capsys.readouterr().err
    assert read(folder) is None
    assert not (folder / "train").exists()


def test_a_diverged_run_is_a_result(tiny_study: Study, tmp_path: Path) -> None:
    changes = ["train.optimizer.lr=1e6", "train.grad_clip=1e9", "train.max_nonfinite_steps=0"]
    assert run_study(tiny_study, tmp_path, changes, FIRST)
    result = read(run_folder(tmp_path, "flow", 0))
    assert isinstance(result, Result)
    assert result.status == "diverged"
    assert result.trainable_parameters > 0
    assert result.scores == {}
    assert result.points == ()
    text = (tmp_path / "report.md").read_text()
    assert "4 runs, 1 diverged, 3 missing" in text
    assert f"- `flow`, seed 0: diverged: {result.reason}" in text
    records = Records.read(tiny_study, tiny_study.settings, tmp_path)
    assert decide(tiny_study.claims[0], records.done()).verdict == "open"
    assert run_study(tiny_study, tmp_path, changes, FIRST)


def test_a_failed_run_is_written_down_and_tried_again(
    tiny_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> Result:
        raise RuntimeError("out of luck\nsecond line")

    with monkeypatch.context() as patch:
        patch.setattr("blip3o.study.start.complete", broken)
        assert not run_study(tiny_study, tmp_path)
    failure = read(run_folder(tmp_path, "mse", 1))
    assert isinstance(failure, Failure)
    assert failure.reason == "RuntimeError: out of luck"
    assert (
        "- `mse`, seed 1: failed: RuntimeError: out of luck" in (tmp_path / "report.md").read_text()
    )
    assert run_study(tiny_study, tmp_path, shard=Shard(4, 4))
    assert isinstance(read(run_folder(tmp_path, "mse", 1)), Result)
    assert not (run_folder(tmp_path, "mse", 1) / "failure.json").exists()


def test_shared_runs_are_trained_once_before_the_arms(tiny_study: Study, tmp_path: Path) -> None:
    base = tiny_study.arms[0].config

    def after(shared: Path) -> Any:
        config = base(shared)
        start = dataclasses.replace(config.init[0], folder=str(shared / "first"))
        return dataclasses.replace(config, init=(start,))

    study = dataclasses.replace(
        tiny_study,
        arms=(Arm(name="late", title="Late", config=after),),
        shared={"first": base},
    )
    changes = ["shared.first.train.steps=2", "evaluation.num_points=1", "train.steps=2"]
    assert run_study(study, tmp_path, changes, Shard(1, 2))
    config = (tmp_path / "shared/first/config.yaml").read_text()
    assert "steps: 2" in config
    model = tmp_path / "shared/first/model/model.safetensors"
    written = model.stat().st_mtime_ns
    run_study(study, tmp_path, changes, Shard(1, 2))
    assert model.stat().st_mtime_ns == written


def test_results_of_other_settings_are_not_mixed(whole: Path, tiny_study: Study) -> None:
    with pytest.raises(UsageError, match=r"other settings of flow, mse; use another --out"):
        run_study(tiny_study, whole, ["train.optimizer.lr=0.5"])
    with pytest.raises(UsageError, match="other settings of evaluation;"):
        run_study(tiny_study, whole, ["evaluation.num_texts=3"])


def test_seeds_may_be_added(
    whole: Path, tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, int]] = []
    monkeypatch.setattr(
        "blip3o.study.start._do", lambda grid, out, arm, seed: done.append((arm, seed))
    )
    run_study(tiny_study, whole, ["seeds=[0,1,5]"])
    assert ("flow", 5) in done
    assert "6 runs, 4 done, 2 missing" in (whole / "report.md").read_text()
    run_study(tiny_study, whole)
    assert "4 runs, 4 done" in (whole / "report.md").read_text()
