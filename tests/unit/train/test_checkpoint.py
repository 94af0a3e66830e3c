"""Checkpoints are atomic, and the last good one is kept."""

import dataclasses
import errno
import json
import os
import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from blip3o.core.errors import UsageError
from blip3o.train.checkpoint import Checkpoints, TrainState, stored_config
from blip3o.train.config import OptimizerConfig
from blip3o.train.optimizer import Ema, build_optimizer
from blip3o.train.tensors import TensorStore


class Saved:
    """A layer with its optimizer, and checkpoints of it in a folder."""

    def __init__(
        self, run_dir: Path, *, width: int = 3, keep_last: int = 2, keep_every: int = 0
    ) -> None:
        self.run_dir = run_dir
        self.layer = nn.Linear(width, width)
        self.parameters = dict(self.layer.named_parameters())
        self.ema = Ema(self.parameters, 0.9)
        self.buffers = {"seen": torch.zeros(1)}
        self.optimizer = build_optimizer(self.parameters, OptimizerConfig(lr=0.1))
        self.checkpoints = Checkpoints(
            run_dir,
            keep_last,
            keep_every,
            self.parameters,
            self.buffers,
            self.ema,
            self.optimizer,
        )

    def train(self) -> None:
        self.optimizer.zero_grad()
        self.layer(torch.ones(2, 3)).square().sum().backward()
        self.optimizer.step()
        self.ema.update(0)
        self.buffers["seen"] += 1

    def begin(self, step: int) -> Path:
        self.train()
        state = TrainState(step=step, samples_seen=2 * step, window={"loss": (0.1 * step, 1.0)})
        return self.checkpoints.save(state, {"of": step})

    def save(self, step: int) -> Path:
        folder = self.begin(step)
        self.checkpoints.wait()
        return folder

    def tensors(self) -> dict[str, Any]:
        moments = {
            f"{name}/{key}": value.tolist()
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state[parameter].items()
        }
        weights = {name: p.tolist() for name, p in self.parameters.items()}
        averages = {name: average.tolist() for name, average in self.ema.averages.items()}
        return {**moments, **weights, "ema": averages, "seen": self.buffers["seen"].tolist()}


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def latest(run_dir: Path) -> str:
    return (run_dir / "latest").read_text().strip()


def test_everything_is_restored_bit_for_bit_and_training_continues_equally(tmp_path: Path) -> None:
    first, second = Saved(tmp_path), Saved(tmp_path)
    first.save(5)
    state = second.checkpoints.load()
    assert state == TrainState(step=5, samples_seen=10, window={"loss": (0.5, 1.0)})
    assert second.tensors() == first.tensors()
    first.train()
    second.train()
    assert second.tensors() == first.tensors()
    assert stored_config(tmp_path) == {"of": 5}


def test_equal_states_are_stored_as_equal_tensors(tmp_path: Path) -> None:
    one = Saved(tmp_path / "a")
    folder = one.save(1)
    other = Saved(tmp_path / "b")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    state = other.checkpoints.load()
    assert state is not None
    again = other.checkpoints.save(dataclasses.replace(state, step=2), {"of": 1})
    other.checkpoints.wait()
    for file in folder.glob("*.safetensors"):
        first, second = load_file(file), load_file(again / file.name)
        assert {name: t.tolist() for name, t in first.items()} == {
            name: t.tolist() for name, t in second.items()
        }


def test_a_checkpoint_before_the_first_step_resumes(tmp_path: Path) -> None:
    saved = Saved(tmp_path)
    saved.checkpoints.save(TrainState(), {})
    saved.checkpoints.wait()
    assert Saved(tmp_path).checkpoints.load() == TrainState()


def test_no_folder_means_a_fresh_start(tmp_path: Path) -> None:
    assert Saved(tmp_path / "missing").checkpoints.load() is None


def test_the_newest_are_kept_and_scratch_is_removed(tmp_path: Path) -> None:
    saved = Saved(tmp_path)
    (tmp_path / "checkpoints" / ".step-00000001.tmp").mkdir(parents=True)
    for step in (1, 2, 3):
        saved.save(step)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    assert latest(tmp_path) == "step-00000003"


def test_checkpoints_at_multiples_of_keep_every_are_kept(tmp_path: Path) -> None:
    saved = Saved(tmp_path, keep_last=1, keep_every=3)
    for step in range(1, 8):
        saved.save(step)
    assert names(tmp_path) == ["step-00000003", "step-00000006", "step-00000007"]


def test_changes_right_after_a_save_are_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, may_write = Saved(tmp_path), threading.Event()
    plain = TensorStore.write

    def late(self: TensorStore, folder: Path, tensors: dict[str, Any]) -> None:
        may_write.wait(10)
        plain(self, folder, tensors)

    monkeypatch.setattr(TensorStore, "write", late)
    saved.begin(1)
    expected = saved.tensors()
    saved.train()
    for average in saved.ema.averages.values():
        average.zero_()
    assert saved.tensors() != expected
    may_write.set()
    saved.checkpoints.wait()
    fresh = Saved(tmp_path)
    fresh.checkpoints.load()
    assert fresh.tensors() == expected


def test_a_damaged_later_checkpoint_never_replaces_a_good_one(tmp_path: Path) -> None:
    saved = Saved(tmp_path, keep_last=1)
    (tmp_path / "checkpoints" / "step-00000009").mkdir(parents=True)
    saved.save(4)
    saved.save(5)
    assert names(tmp_path) == ["step-00000005", "step-00000009"]


@pytest.mark.parametrize("damage", ["missing", "empty", "wrong", "binary"])
def test_without_a_valid_latest_the_newest_is_used_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture, damage: str
) -> None:
    saved = Saved(tmp_path)
    saved.save(1)
    saved.save(2)
    pointer = tmp_path / "latest"
    match damage:
        case "missing":
            pointer.unlink()
        case "empty":
            pointer.write_text("")
        case "wrong":
            pointer.write_text("step-00000077\n")
        case "binary":
            pointer.write_bytes(b"\xff\xfe\x00")
    state = Saved(tmp_path).checkpoints.load()
    assert state is not None
    assert state.step == 2
    assert "warning" in capsys.readouterr().err


def test_the_checkpoint_that_latest_names_is_used(tmp_path: Path) -> None:
    saved = Saved(tmp_path)
    saved.save(1)
    saved.save(2)
    (tmp_path / "latest").write_text("step-00000001\n")
    state = Saved(tmp_path).checkpoints.load()
    assert state is not None
    assert state.step == 1


@pytest.mark.parametrize(
    "file",
    ["state.json", *(f"shard-00001-model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))],
)
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_previous_one(
    tmp_path: Path, capsys: pytest.CaptureFixture, file: str, damage: str
) -> None:
    saved = Saved(tmp_path)
    saved.save(1)
    expected = saved.tensors()
    folder = saved.save(2)
    content = (folder / file).read_bytes()
    (folder / file).unlink()
    if damage == "cut":
        (folder / file).write_bytes(content[:-7])
    fresh = Saved(tmp_path)
    state = fresh.checkpoints.load()
    assert state is not None
    assert state.step == 1
    assert fresh.tensors() == expected
    assert "step-00000002 is not whole" in capsys.readouterr().err


def test_unreadable_checkpoints_are_an_error_and_not_a_fresh_start(tmp_path: Path) -> None:
    folder = Saved(tmp_path).save(1)
    (folder / "state.json").write_text("{")
    with pytest.raises(UsageError, match=r"no checkpoint in .* can be read"):
        Saved(tmp_path).checkpoints.load()
    shutil.rmtree(tmp_path / "checkpoints")  # `latest` still shows that there was a run
    with pytest.raises(UsageError, match=r"no checkpoint in .* can be read"):
        Saved(tmp_path).checkpoints.load()


def test_a_checkpoint_of_another_model_is_refused_with_the_names_of_its_weights(
    tmp_path: Path,
) -> None:
    Saved(tmp_path).save(1)
    with pytest.raises(UsageError, match="another model: 2 weights differ: bias, weight"):
        Saved(tmp_path, width=4).checkpoints.load()


@contextmanager
def small_files() -> Iterator[None]:
    """Limits the size of files, which looks like a full disk to the writer."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, old[1]))
    try:
        yield
    finally:  # not a fixture: pytest writes its report before fixtures end
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_failed_write_of_tensors_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    saved = Saved(tmp_path)
    saved.save(1)
    expected = saved.tensors()
    match = r"could not be written.*File too large.*make room"
    with small_files():
        saved.begin(2)
        with pytest.raises(UsageError, match=match):
            saved.checkpoints.wait()
    assert names(tmp_path) == ["step-00000001"]
    fresh = Saved(tmp_path)
    fresh.checkpoints.load()
    assert fresh.tensors() == expected


@pytest.mark.parametrize("where", ["state", "flush", "rename"])
def test_a_full_disk_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    saved = Saved(tmp_path)
    saved.save(1)
    expected = saved.tensors()
    with monkeypatch.context() as patch:
        match where:
            case "state":
                patch.setattr(Path, "write_bytes", refuse)
            case "flush":
                patch.setattr(os, "fsync", refuse)
            case "rename":
                patch.setattr(os, "replace", refuse)
        with pytest.raises(UsageError, match=r"could not be written.*No space left on device"):
            saved.save(2)
    assert names(tmp_path) == ["step-00000001"]
    assert latest(tmp_path) == "step-00000001"
    fresh = Saved(tmp_path)
    fresh.checkpoints.load()
    assert fresh.tensors() == expected


def test_a_kill_between_rename_and_pointer_resumes_from_the_pointer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = Saved(tmp_path)
    saved.save(1)
    plain = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).name == "latest":
            raise KeyboardInterrupt  # stands for the end of the process
        plain(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            saved.save(2)
    again = Saved(tmp_path)
    state = again.checkpoints.load()
    assert state is not None
    assert state.step == 1
    folder = again.save(2)
    assert json.loads((folder / "state.json").read_text())["step"] == 2
    assert latest(tmp_path) == "step-00000002"


def flip(file: Path, place: float) -> None:
    """Flips a bit of a file at a position given as a share of its length."""
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize(
    "file",
    ["state.json", *(f"shard-00001-model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))],
)
@pytest.mark.parametrize("place", [0.0, 0.1, 0.3, 0.5, 0.8, 0.95, 1.0])
def test_a_flipped_bit_in_the_newest_checkpoint_falls_back_to_the_previous_one(
    tmp_path: Path, capsys: pytest.CaptureFixture, file: str, place: float
) -> None:
    saved = Saved(tmp_path)
    saved.save(1)
    expected = saved.tensors()
    flip(saved.save(2) / file, place)
    fresh = Saved(tmp_path)
    state = fresh.checkpoints.load()
    assert state is not None
    assert state.step == 1
    assert fresh.tensors() == expected
    assert "step-00000002 is not whole" in capsys.readouterr().err
    assert stored_config(tmp_path) in ({"of": 1}, {"of": 2})


def test_flipped_bits_in_all_checkpoints_are_an_error_and_not_a_fresh_start(tmp_path: Path) -> None:
    saved = Saved(tmp_path)
    for step in (1, 2):
        flip(next(saved.save(step).glob("*00002-of*")), 1.0)
    with pytest.raises(UsageError, match=r"no checkpoint in .* can be read"):
        Saved(tmp_path).checkpoints.load()


def test_equal_content_has_equal_hashes(tmp_path: Path) -> None:
    hashes = []
    for number in range(8):  # the entries of the header have another order each time
        store, folder = TensorStore(), tmp_path / str(number)
        folder.mkdir()
        store.write(folder, {f"model/{name}": torch.ones(2) for name in "abcdefgh"})
        hashes.append(store.hashes(folder))
    assert len({next((tmp_path / str(n)).iterdir()).read_bytes() for n in range(8)}) > 1
    assert all(one == hashes[0] for one in hashes)


def test_a_checkpoint_without_hashes_loads_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    saved = Saved(tmp_path)
    state_file = saved.save(1) / "state.json"
    facts = json.loads(state_file.read_text())
    del facts["hashes"], facts["digest"]
    state_file.write_text(json.dumps(facts))
    fresh = Saved(tmp_path)
    state = fresh.checkpoints.load()
    assert state is not None
    assert fresh.tensors() == saved.tensors()
    assert capsys.readouterr().err.count("has no hashes") == 1
