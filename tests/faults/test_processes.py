"""Runs on several processes have the losses of one process and survive the death of any of them.

Processes are forked, with the environment that torchrun would set, and communicate by gloo.
"""

import json
import multiprocessing
import os
import resource
import signal
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from PIL import Image
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageReader

from blip3o.core.config import evolve, save_yaml
from blip3o.core.errors import PreemptedError, UsageError
from blip3o.core.shard import Shard
from blip3o.core.types import Batch, LossOutput
from blip3o.data.sources import plain_files
from blip3o.models.backbones.packed import Packing
from blip3o.objectives.flow_matching import FlowMatching
from blip3o.objectives.policy import PolicyObjective
from blip3o.runs import features, start
from blip3o.runs.start import train
from blip3o.train.config import RunConfig
from blip3o.train.tensors import TensorStore
from blip3o.train.trainer import Trainer

STEPS = 10
PREEMPTED, USAGE = 75, 2
_TIMED = (
    "samples_per_second",
    "tokens_per_second",
    "busy_cores",
    "tflops",
    "data_wait",
    "memory_mb",
)


def launch(
    config: RunConfig,
    run_dir: Path,
    world_size: int,
    prepare: Callable[[int], None] | None = None,
    act: Callable[[RunConfig, Path], object] = train,
) -> list[ForkProcess]:
    """Starts processes that run `act`; each calls `prepare(rank)` first."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def work(rank: int) -> None:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(world_size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            GLOO_SOCKET_IFNAME="lo",
        )
        if prepare is not None:
            prepare(rank)
        try:
            act(config, run_dir)
        except PreemptedError:
            os._exit(PREEMPTED)
        except UsageError:
            os._exit(USAGE)
        except Exception:  # noqa: BLE001  (for example, the other processes are gone)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(rank,)) for rank in range(world_size)]
    for process in processes:
        process.start()
    return processes


def finish(processes: list[ForkProcess], seconds: float = 120.0) -> list[int | None]:
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        if process.exitcode is None:
            process.kill()
    return [process.exitcode for process in processes]


def slow(rank: int) -> None:
    """Makes steps and saves slow enough to be interrupted; a save lasts longer than a step."""
    del rank
    plain_step, plain_write = torch.optim.AdamW.step, TensorStore.write

    def step(self: torch.optim.AdamW, *arguments: Any) -> Any:
        time.sleep(0.05)
        return plain_step(self, *arguments)

    def write(self: TensorStore, folder: Path, tensors: Any) -> None:
        time.sleep(0.1)
        plain_write(self, folder, tensors)

    pytest.MonkeyPatch().setattr(torch.optim.AdamW, "step", step)
    pytest.MonkeyPatch().setattr(TensorStore, "write", write)


def wait_for_step(run_dir: Path, step: int, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while newest_step(run_dir) < step:
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.005)


def newest_step(run_dir: Path) -> int:
    pointer = run_dir / "latest"
    return int(pointer.read_text().strip().removeprefix("step-")) if pointer.exists() else -1


def tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """Returns all tensors of the newest checkpoint, whole, and those of the model folder."""
    folder = run_dir / "checkpoints" / (run_dir / "latest").read_text().strip()
    reader = HuggingFaceStorageReader(str(folder))
    about: dict[str, Any] = reader.read_metadata().state_dict_metadata
    found = {n: torch.zeros(one.size, dtype=one.properties.dtype) for n, one in about.items()}
    dcp.load(found, storage_reader=reader, no_dist=True)
    for file in (run_dir / "model").rglob("*.safetensors"):
        for name, tensor in load_file(file).items():
            found[f"{file.relative_to(run_dir)}/{name}"] = tensor
    return found


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in _TIMED} for row in rows]


def assert_same(run_dir: Path, other: Path) -> None:
    left, right = tensors(run_dir), tensors(other)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    assert metrics(run_dir) == metrics(other)


def assert_close(run_dir: Path, other: Path, atol: float = 1e-12) -> None:
    left, right = metrics(run_dir), metrics(other)
    assert [row["step"] for row in left] == [row["step"] for row in right]
    for row, expected in zip(left, right, strict=True):
        assert row == pytest.approx(expected, rel=1e-5, abs=atol)


@pytest.fixture(scope="module")
def alone(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("alone")
    train(config, run_dir)
    return run_dir


@pytest.fixture(scope="module")
def pair(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("pair")
    assert finish(launch(config, run_dir, 2)) == [0, 0]
    return run_dir


def test_two_processes_equal_one(alone: Path, pair: Path) -> None:
    assert_close(pair, alone)
    found, expected = tensors(pair), tensors(alone)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_two_processes_train_a_diffusion_decoder_as_one_does(
    decoder_config: RunConfig, tmp_path: Path
) -> None:
    train(decoder_config, tmp_path / "1")
    assert finish(launch(decoder_config, tmp_path / "2", 2)) == [0, 0]
    assert_close(tmp_path / "2", tmp_path / "1")


@pytest.mark.parametrize("world_size", [1, 2])
def test_runs_without_padding_equal_runs_with_padding(
    config: RunConfig, alone: Path, tmp_path: Path, world_size: int
) -> None:
    config = evolve(config, {"train.padding_free": True})

    def count(rank: int) -> None:
        plain = Packing.attend

        def attend(self: Packing, *inputs: Any) -> Any:
            (tmp_path / f"packed-{rank}").touch()
            return plain(self, *inputs)

        pytest.MonkeyPatch().setattr(Packing, "attend", attend)

    assert finish(launch(config, tmp_path, world_size, count)) == [0] * world_size
    assert_close(tmp_path, alone)
    assert len(list(tmp_path.glob("packed-*"))) == world_size


def test_a_run_resumed_after_kill_9_of_one_process_equals_an_undisturbed_run(
    config: RunConfig, pair: Path, tmp_path: Path
) -> None:
    processes = launch(config, tmp_path, 2, slow)
    wait_for_step(tmp_path, 3)
    assert processes[1].pid is not None
    os.kill(processes[1].pid, signal.SIGKILL)
    assert finish(processes) == [1, -signal.SIGKILL]
    assert newest_step(tmp_path) < STEPS
    assert finish(launch(config, tmp_path, 2)) == [0, 0]
    assert_same(tmp_path, pair)


def resume_after_kill_9(config: RunConfig, run_dir: Path, size: int) -> None:
    """Kills one process of a run after a checkpoint, and finishes the run."""
    processes = launch(config, run_dir, size, slow)
    wait_for_step(run_dir, 3)
    assert processes[-1].pid is not None
    os.kill(processes[-1].pid, signal.SIGKILL)
    assert finish(processes)[-1] == -signal.SIGKILL
    assert newest_step(run_dir) < STEPS
    assert finish(launch(config, run_dir, size)) == [0] * size


def test_every_method_has_the_same_losses_on_one_and_two_processes_and_survives_kill_9(
    method_config: RunConfig, killed_size: int, tmp_path: Path
) -> None:
    """Each method is killed at one number of processes, and each number has several methods."""
    folders = {size: tmp_path / f"{size}" for size in (1, 2)}
    for size, folder in folders.items():
        assert finish(launch(method_config, folder, size)) == [0] * size
    assert_close(folders[2], folders[1])
    resume_after_kill_9(method_config, tmp_path / "killed", killed_size)
    assert_same(tmp_path / "killed", folders[killed_size])


def test_reward_tuning_is_exact_after_kill_9_and_equal_on_one_and_two_processes(
    reward_config: RunConfig, tmp_path: Path
) -> None:
    one, two, killed = (tmp_path / name for name in ("one", "two", "killed"))
    train(reward_config, one)
    assert finish(launch(reward_config, two, 2)) == [0, 0]
    assert_close(two, one, atol=1e-7)  # the terms of a policy gradient almost add up to zero
    row = metrics(one)[0]
    for name in ("DiffusionNft", "FlowGrpo"):
        assert 0 < row[f"{name}/reward"] < 1
        assert row[f"{name}/reward_std"] > 0
        assert row[f"{name}/kl"] > 0, "the start weights are not those of the model"
        assert 0 <= row[f"{name}/no_signal"] < 1
    for size, folder in ((1, one), (2, two)):
        resume_after_kill_9(reward_config, killed / str(size), size)
        assert_same(killed / str(size), folder)


def test_a_reward_that_fails_on_one_process_stops_all_and_keeps_the_last_checkpoint(
    reward_config: RunConfig, tmp_path: Path
) -> None:
    def fail(rank: int) -> None:
        plain = PolicyObjective.roll_out

        def roll_out(self: PolicyObjective, model: Any, batch: Batch, seed: int) -> Batch:
            if rank == 1 and int(batch.indices.max()) >= 4 * 6:
                raise UsageError("the reward server is gone")
            return plain(self, model, batch, seed)

        pytest.MonkeyPatch().setattr(PolicyObjective, "roll_out", roll_out)

    assert finish(launch(reward_config, tmp_path, 2, fail)) == [USAGE] * 2
    assert newest_step(tmp_path) == 3
    assert not (tmp_path / "model").exists()


def test_a_run_continues_on_one_two_and_four_processes_with_the_same_samples_and_losses(
    config: RunConfig, alone: Path, tmp_path: Path
) -> None:
    config = evolve(config, {"train.checkpoint_every": 100, "train.log_every": 1})
    config = evolve(config, {"train.global_batch_size": 8, "train.micro_batch_size": 3})
    order = tmp_path / "order"
    order.mkdir()

    def note(rank: int) -> None:
        plain = Trainer._step

        def step(self: Trainer, groups: list[Any], rate: float) -> Any:
            rows = [index for batch in groups for index in batch.indices.tolist()]
            with (order / f"{self.state.step}").open("a") as file:
                file.write(json.dumps(rows) + "\n")
            return plain(self, groups, rate)

        pytest.MonkeyPatch().setattr(Trainer, "_step", step)

    def stopped_at(number: int) -> Callable[[int], None]:
        def prepare(rank: int) -> None:
            note(rank)
            plain = Trainer._next

            def following(self: Trainer, *arguments: Any, **options: Any) -> Any:
                if self.state.step == number and rank == 0:
                    os.kill(os.getpid(), signal.SIGUSR1)
                return plain(self, *arguments, **options)

            pytest.MonkeyPatch().setattr(Trainer, "_next", following)

        return prepare

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config, whole)
    assert finish(launch(config, parts, 1, stopped_at(3))) == [PREEMPTED]
    assert finish(launch(config, parts, 2, stopped_at(6))) == [PREEMPTED] * 2
    assert finish(launch(config, parts, 4, note)) == [0] * 4
    assert newest_step(parts) == STEPS
    assert_close(parts, whole)
    for step in range(STEPS):
        lines = (order / str(step)).read_text().splitlines()
        assert len(lines) == (1 if step < 3 else 2 if step < 6 else 4)
        rows = sorted(index for line in lines for index in json.loads(line))
        assert rows == list(range(8 * step, 8 * step + 8))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.slow
def test_a_signal_to_any_process_saves_and_resumes_bit_for_bit(
    config: RunConfig, pair: Path, tmp_path: Path, number: int
) -> None:
    stopping = evolve(config, {"train.checkpoint_every": 100, "data.num_workers": 1})
    processes = launch(stopping, tmp_path, 2, slow)
    wait_for_line(tmp_path)
    assert processes[1].pid is not None
    os.kill(processes[1].pid, number)
    assert finish(processes) == [PREEMPTED] * 2
    assert 4 <= newest_step(tmp_path) < STEPS
    assert finish(launch(config, tmp_path, 2)) == [0, 0]
    assert_same(tmp_path, pair)


def wait_for_line(run_dir: Path, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    file = run_dir / "metrics.jsonl"
    while not (file.exists() and "{" in file.read_text()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.005)


def test_a_full_disk_of_one_process_ends_all_and_keeps_the_last_checkpoint(
    config: RunConfig, pair: Path, tmp_path: Path
) -> None:
    def fill(rank: int) -> None:
        plain = TensorStore.write

        def write(self: TensorStore, folder: Path, tensors: Any) -> None:
            if rank == 1 and "step-00000006" in folder.name:
                resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
            plain(self, folder, tensors)

        pytest.MonkeyPatch().setattr(TensorStore, "write", write)

    assert finish(launch(config, tmp_path, 2, fill)) == [USAGE] * 2
    assert newest_step(tmp_path) == 3
    assert [f.name for f in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    assert finish(launch(config, tmp_path, 2)) == [0, 0]
    assert_same(tmp_path, pair)


def test_a_step_that_is_not_finite_on_one_process_is_skipped_on_all(
    config: RunConfig, tmp_path: Path
) -> None:
    def poison(rank: int) -> None:
        del rank
        plain = FlowMatching.forward

        def forward(self: FlowMatching, model: Any, batch: Batch, seed: int) -> LossOutput:
            output = plain(self, model, batch, seed)
            if 13 in batch.indices.tolist():  # a sample of step 2
                output.loss_sum = output.loss_sum * float("nan")
            return output

        pytest.MonkeyPatch().setattr(FlowMatching, "forward", forward)

    config = evolve(config, {"train.log_every": 1, "train.steps": 4})
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        assert finish(launch(config, folder, world_size, poison)) == [0] * world_size
        assert [row["nonfinite_steps"] for row in metrics(folder)] == [0, 0, 1, 1]
    assert_close(tmp_path / "2", tmp_path / "1")


def test_half_precision_checkpointed_blocks_and_samples(config: RunConfig, tmp_path: Path) -> None:
    changes = {
        "train.precision": "bf16",
        "train.activation_checkpointing": True,
        "train.steps": 2,
        "train.log_every": 1,
        "train.sample_every": 2,
        "sample_prompts": ["a red cat"],
    }
    config = evolve(config, changes)
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        assert finish(launch(config, folder, world_size)) == [0] * world_size
        assert {file.name for file in (folder / "samples").iterdir()} == {
            "step-00000002.png",
            "step-00000002.txt",
            "step-00000002-asked.png",
        }
    for row, expected in zip(metrics(tmp_path / "2"), metrics(tmp_path / "1"), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=0.02)
    assert {str(t.dtype) for t in tensors(tmp_path / "2").values()} == {"torch.float32"}


def test_a_batch_that_cannot_be_shared_is_refused(config: RunConfig, tmp_path: Path) -> None:
    assert finish(launch(config, tmp_path, 4)) == [USAGE] * 4
    assert not (tmp_path / "metrics.jsonl").exists()


def test_adapters_of_two_processes_equal_those_of_one(config: RunConfig, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs adapters: pip install 'blip3o[lora]'")
    changes = {"train.adapter": {"rank": 2}, "train.optimizer.lr": 1e-2}
    changes |= {"train.sample_every": STEPS, "sample_prompts": ["a red cat"]}
    config = evolve(config, changes)
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        assert finish(launch(config, folder, world_size)) == [0] * world_size
    found, expected = tensors(tmp_path / "2"), tensors(tmp_path / "1")
    assert found.keys() == expected.keys()
    averages = [name.removeprefix("ema/") for name in found if name.startswith("ema/")]
    assert averages
    assert all(".lora_" in name for name in averages)
    adapted = {f"{name.partition('.lora_')[0]}.weight" for name in averages}
    changed = set()
    for name, tensor in load_file(Path(config.init[0].folder) / "model.safetensors").items():
        stored = f"model/model.safetensors/{name}"
        torch.testing.assert_close(found[stored], expected[stored], rtol=0, atol=1e-5, msg=name)
        if not torch.equal(found[stored], tensor):
            changed.add(name)
    assert {name.partition(".")[0] for name in changed} == {"backbone", "generator"}
    assert changed <= adapted
    files = [tmp_path / str(n) / f"samples/step-{STEPS:08d}.png" for n in (1, 2)]
    one, two = (np.asarray(Image.open(file), dtype=int) for file in files)
    assert np.abs(one - two).max() <= 1


def test_processes_share_the_work_of_a_feature_cache(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_files, "_SHARD_RECORDS", 2)
    save_yaml(config, tmp_path / "run.yaml")
    scenes = tmp_path / "scenes"

    def prepare(rank: int) -> None:
        def write_scenes(data: object) -> None:
            if rank == 0:
                time.sleep(0.5)  # without waiting, the others would find only some of the shards
                scenes.touch()
            assert scenes.exists()

        def build(*arguments: Any, **settings: Any) -> None:
            # A process of a group uses its own GPU (`process_group`), not the first one.
            assert dist.get_rank() == rank
            assert settings["shard"] == Shard(2 + rank + 1, 6)
            plain_build(*arguments, **settings)

        plain_build = features.build_cache
        start.ensure_scenes, features.build_cache = write_scenes, build

    def act(config: RunConfig, folder: Path) -> None:
        cached = f"data.feature_cache={folder / 'cache'}"
        start.cache_features(str(folder / "run.yaml"), [cached], Shard(2, 3))

    assert finish(launch(config, tmp_path, 2, prepare, act)) == [0, 0]
    assert len(list(tmp_path.glob("cache/toy.image.*/*.features"))) == 2  # shards 2 and 3


def test_two_processes_of_a_run_share_its_folder_and_another_run_is_refused(
    config: RunConfig, tmp_path: Path
) -> None:
    first = launch(config, tmp_path, 2, slow)
    wait_for_step(tmp_path, 3)
    assert finish(launch(config, tmp_path, 2)) == [USAGE] * 2
    assert finish(first) == [0, 0]
