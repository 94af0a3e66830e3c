"""Real runs that are killed or stopped, or run out of disk: they resume bit for bit or give advice.

A run has tiny size but all real parts (jsonl images, loader, unified model, objectives). It has its
own forked process, which the tests can kill.
"""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from blip3o.core.config import evolve
from blip3o.core.errors import PreemptedError, UsageError
from blip3o.runs.start import train
from blip3o.train.config import RunConfig
from blip3o.train.tensors import TensorStore

STEPS = 10
PREEMPTED, USAGE = 75, 2


@pytest.fixture(scope="module")
def whole_run(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run; copy it before changing it."""
    run_dir = tmp_path_factory.mktemp("whole")
    train(config, run_dir)
    return run_dir


@pytest.fixture(scope="module")
def whole(whole_run: Path) -> dict[str, Any]:
    """The results of the undisturbed run."""
    return read(whole_run)


@pytest.fixture
def finished(whole_run: Path, tmp_path: Path) -> Path:
    """A copy of the undisturbed run."""
    return shutil.copytree(whole_run, tmp_path / "finished")


def read(run_dir: Path) -> dict[str, Any]:
    """Returns all stored tensors, the model and the logged metrics of a run, except timings."""
    newest = (run_dir / "latest").read_text().strip()
    files = [*(run_dir / "checkpoints" / newest).glob("*.safetensors")]
    files += (run_dir / "model").rglob("*.safetensors")
    content: dict[str, Any] = {
        str(file.relative_to(run_dir)): {n: t.tolist() for n, t in load_file(file).items()}
        for file in files
    }
    timed = (
        "samples_per_second",
        "tokens_per_second",
        "busy_cores",
        "tflops",
        "data_wait",
        "memory_mb",
    )
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    content["metrics"] = [
        {key: value for key, value in json.loads(line).items() if key not in timed}
        for line in lines
    ]
    return content


def start(config: RunConfig, run_dir: Path, *, pace_s: float = 0.0) -> BaseProcess:
    """Starts a run in its own process group; each step takes at least `pace_s` seconds."""

    def work() -> None:
        os.setpgrp()
        if pace_s:
            _slow_down(pace_s)
        try:
            train(config, run_dir)
        except PreemptedError:
            os._exit(PREEMPTED)
        except UsageError:
            os._exit(USAGE)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def _slow_down(pace_s: float) -> None:
    plain = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *arguments: Any) -> Any:
        time.sleep(pace_s)
        return plain(self, *arguments)

    pytest.MonkeyPatch().setattr(torch.optim.AdamW, "step", step)


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.005)


def finish(process: BaseProcess, seconds: float = 30.0) -> int | None:
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
    return process.exitcode


def newest_step(run_dir: Path) -> int:
    pointer = run_dir / "latest"
    return int(pointer.read_text().strip().removeprefix("step-")) if pointer.exists() else -1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_after_kill_9_equals_an_undisturbed_run(
    config: RunConfig, whole: dict[str, Any], tmp_path: Path, workers: int
) -> None:
    config = evolve(config, {"data.num_workers": workers})
    process = start(config, tmp_path, pace_s=0.05)
    wait_for(lambda: newest_step(tmp_path) >= 3)
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGKILL)
    assert finish(process) == -signal.SIGKILL
    assert newest_step(tmp_path) < STEPS
    train(evolve(config, {"data.num_workers": 0}), tmp_path)
    assert read(tmp_path) == whole


def test_a_decoder_run_resumed_after_kill_9_equals_an_undisturbed_run(
    decoder_config: RunConfig, tmp_path: Path
) -> None:
    config = decoder_config
    train(config, tmp_path / "whole")
    process = start(config, tmp_path / "killed", pace_s=0.05)
    wait_for(lambda: newest_step(tmp_path / "killed") >= 3)
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGKILL)
    assert finish(process) == -signal.SIGKILL
    train(config, tmp_path / "killed")
    whole = read(tmp_path / "whole")
    assert read(tmp_path / "killed") == whole
    stored = load_file(tmp_path / "whole" / "model" / "image_decoder" / "model.safetensors")
    assert float(stored["empty_features"].abs().sum()) > 0
    shutil.rmtree(tmp_path / "whole" / "model")
    train(config, tmp_path / "whole")  # a finished run writes the same model without a step
    assert read(tmp_path / "whole") == whole


def test_kill_9_in_the_middle_of_a_save_resumes_from_the_one_before(
    config: RunConfig, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killing(self: TensorStore, folder: Path, tensors: Any) -> None:
        plain(self, folder, tensors)
        if "step-00000006" in folder.name:
            next(folder.iterdir()).write_bytes(b"half of it")
            os.kill(os.getpid(), signal.SIGKILL)

    plain = TensorStore.write
    with monkeypatch.context() as patch:
        patch.setattr(TensorStore, "write", killing)
        assert finish(start(config, tmp_path)) == -signal.SIGKILL
    assert newest_step(tmp_path) == 3
    train(config, tmp_path)
    assert read(tmp_path) == whole
    assert not list((tmp_path / "checkpoints").glob(".*"))


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGTERM, 2), (signal.SIGINT, 2)]
)
def test_a_signal_to_the_whole_group_saves_and_resumes(
    config: RunConfig, whole: dict[str, Any], tmp_path: Path, number: int, workers: int
) -> None:
    config = evolve(config, {"data.num_workers": workers, "train.checkpoint_every": 100})
    process = start(config, tmp_path, pace_s=0.05)
    wait_for(lambda: (tmp_path / "metrics.jsonl").exists() and "{" in _text(tmp_path))
    assert process.pid is not None
    os.killpg(process.pid, number)  # as Slurm and a terminal do; it reaches loader workers, too
    assert finish(process) == PREEMPTED
    assert 4 <= newest_step(tmp_path) < STEPS
    train(evolve(config, {"data.num_workers": 0}), tmp_path)
    assert read(tmp_path) == whole


def _text(run_dir: Path) -> str:
    return (run_dir / "metrics.jsonl").read_text()


def test_a_second_signal_ends_the_run_immediately(config: RunConfig, tmp_path: Path) -> None:
    process = start(config, tmp_path, pace_s=5.0)
    wait_for(lambda: (tmp_path / "metrics.jsonl").exists())
    time.sleep(0.2)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.05)
    begun = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == 128 + signal.SIGTERM
    assert time.monotonic() - begun < 2


def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(
    config: RunConfig, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: TensorStore, folder: Path, tensors: Any) -> None:
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        if "step-00000006" in folder.name:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, old[1]))
        try:
            plain(self, folder, tensors)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)

    plain = TensorStore.write
    with monkeypatch.context() as patch:
        patch.setattr(TensorStore, "write", full)
        with pytest.raises(UsageError, match=r"could not be written.*make room"):
            train(config, tmp_path)
    assert newest_step(tmp_path) == 3
    train(config, tmp_path)
    assert read(tmp_path) == whole


def test_a_finished_run_that_is_started_again_keeps_its_weights(
    config: RunConfig, whole: dict[str, Any], finished: Path, capsys: pytest.CaptureFixture
) -> None:
    train(config, finished)
    assert "is finished" in capsys.readouterr().err
    assert read(finished) == whole


def test_a_second_run_in_a_folder_is_refused(
    config: RunConfig, whole: dict[str, Any], tmp_path: Path
) -> None:
    first = start(config, tmp_path, pace_s=0.3)
    wait_for(lambda: (tmp_path / "metrics.jsonl").exists())
    with pytest.raises(UsageError, match=f"^process {first.pid} on .* trains in {tmp_path}"):
        train(config, tmp_path)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    train(config, tmp_path)  # immediately: the lock ended with its process
    assert read(tmp_path) == whole


def test_kill_9_with_loader_processes_left_frees_the_folder(
    config: RunConfig, whole: dict[str, Any], tmp_path: Path
) -> None:
    process = start(evolve(config, {"data.num_workers": 2}), tmp_path, pace_s=0.1)
    wait_for(lambda: newest_step(tmp_path) >= 3)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)  # not its group: the workers notice it seconds later
    process.join()
    train(config, tmp_path)
    assert read(tmp_path) == whole


@pytest.mark.parametrize("end", ["model-00001", "model-00002", "model-00003", "state.json"])
def test_a_flipped_bit_in_the_newest_checkpoint_is_neither_trained_on_nor_exported(
    config: RunConfig,
    whole: dict[str, Any],
    finished: Path,
    capsys: pytest.CaptureFixture,
    end: str,
) -> None:
    (file,) = (finished / "checkpoints" / f"step-{STEPS:08d}").glob(f"*{end}*")
    content = bytearray(file.read_bytes())
    content[-5 if end != "state.json" else content.index(b'"samples_seen": 60') + 16] ^= 1
    file.write_bytes(content)
    shutil.rmtree(finished / "model")
    capsys.readouterr()
    train(config, finished)
    err = capsys.readouterr().err
    assert f"step-{STEPS:08d} is not whole" in err
    assert f"resuming {finished} at step 9" in err
    assert read(finished) == whole


def test_a_flipped_bit_in_every_checkpoint_of_a_finished_run_exports_nothing(
    config: RunConfig, finished: Path
) -> None:
    for file in finished.glob("checkpoints/*/*model-00001*"):
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    model = {file: file.read_bytes() for file in (finished / "model").rglob("*.safetensors")}
    with pytest.raises(UsageError, match="can be read"):
        train(config, finished)
    assert all(file.read_bytes() == content for file, content in model.items())


def test_a_damaged_feature_cache_stops_the_run_and_the_same_command_repairs_it(
    config: RunConfig, tmp_path: Path
) -> None:
    config = evolve(config, {"data.feature_cache": str(tmp_path / "cache")})
    train(config, tmp_path / "whole")
    (file,) = tmp_path.glob("cache/toy.image.*/*.features")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"\.features is damaged.*the same command again"):
        train(config, tmp_path / "again")
    assert not (tmp_path / "again" / "latest").exists()
    train(config, tmp_path / "again")
    assert read(tmp_path / "again") == read(tmp_path / "whole")


@pytest.mark.parametrize("sample_every", [0, 4])
def test_the_error_of_a_diverged_run_names_the_learning_rate(
    config: RunConfig, tmp_path: Path, sample_every: int
) -> None:
    changes = {
        "train.steps": 60,
        "train.optimizer.lr": 1e6,
        "train.sample_every": sample_every,
        "sample_prompts": ["a red cat"],
    }
    with pytest.raises(UsageError, match=r"lower train\.optimizer\.lr") as caught:
        train(evolve(config, changes), tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()
