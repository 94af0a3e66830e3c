"""A save that is killed anywhere leaves the previous checkpoint or the new one, never a mixture."""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from blip3o.core.distributed import exchange, process_group
from blip3o.train.checkpoint import Checkpoints, TrainState
from blip3o.train.optimizer import Ema

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")


class Saved:
    """Weights that equal their step number, and their checkpoints."""

    def __init__(self, run_dir: Path) -> None:
        weight = torch.zeros(6, 2)
        if dist.is_initialized():
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            weight = DTensor.from_local(weight[: 6 // dist.get_world_size()], mesh, [Shard(0)])
        self.parameters = {"weight": nn.Parameter(weight)}
        self.ema = Ema(self.parameters, 0.5)
        optimizer = torch.optim.AdamW(self.parameters.values())
        self.checkpoints = Checkpoints(run_dir, 1, 0, self.parameters, {}, self.ema, optimizer)

    def save(self, step: int) -> None:
        for tensor in (self.parameters["weight"].detach(), self.ema.averages["weight"]):
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            local.fill_(step)
        self.checkpoints.save(TrainState(step=step), {})
        self.checkpoints.wait()


def check(run_dir: Path) -> int:
    """Loads the checkpoint in one process, checks that all tensors are of one step, saves again."""
    saved = Saved(run_dir)
    state = saved.checkpoints.load()
    assert state is not None
    for tensor in (weight_of(saved), saved.ema.averages["weight"]):
        assert torch.equal(tensor, torch.full((6, 2), float(state.step)))
    saved.save(3)
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-00000003"]
    return state.step


def weight_of(saved: Saved) -> torch.Tensor:
    return saved.parameters["weight"].detach()


def kill_before(run_dir: Path, is_it: Callable[[str], bool]) -> None:
    """Kills this process before a write, flush or rename in the run folder."""

    def meet(what: str) -> None:
        if is_it(what):
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if writes or event in _CHANGES:
            path = str(arguments[0])
            if path.startswith(str(run_dir)) or not path.startswith("/"):  # or relative to a folder
                meet(f"{event} {Path(path).name}")

    def fsync(fd: Any) -> None:
        meet("fsync")
        plain(fd)

    plain, os.fsync = os.fsync, fsync
    sys.addaudithook(hook)


def fork(work: Callable[[], None]) -> Any:
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def test_kill_9_before_every_write_flush_and_rename(tmp_path: Path) -> None:
    met: list[int] = []
    for number in range(100):
        run_dir = tmp_path / str(number)

        def work(run_dir: Path = run_dir, number: int = number) -> None:
            saved, left = Saved(run_dir), iter(range(number))
            saved.save(1)
            kill_before(run_dir, lambda _: next(left, None) is None)
            saved.save(2)
            os._exit(0)

        process = fork(work)
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        met.append(check(run_dir))
    assert len(met) > 15
    assert met == sorted(met)  # before the rename the old checkpoint, after it the new one
    assert set(met) == {1, 2}


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
    return number


@pytest.mark.parametrize(
    ("rank", "point", "expected"),
    [
        (1, "open shard-00002", 1),
        (0, "open .state.json.part", 1),
        (0, "os.rename .step-00000002.tmp", 1),
        (0, "os.rename .latest.part", 1),
        (0, "os.remove shard", 2),
    ],
)
def test_kill_9_of_one_of_two_processes(
    tmp_path: Path, port: int, rank: int, point: str, expected: int
) -> None:
    def work(own: int) -> None:
        os.environ.update(
            RANK=str(own),
            LOCAL_RANK=str(own),
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            GLOO_SOCKET_IFNAME="lo",
        )
        with process_group():
            saved = Saved(tmp_path)
            saved.save(1)
            if own == rank:
                kill_before(tmp_path, lambda what: what.startswith(point))
            try:
                saved.save(2)
                exchange(None)
            except RuntimeError:  # the other process is gone
                os._exit(1)

    processes = [fork(lambda own=own: work(own)) for own in range(2)]
    for process in processes:
        process.join(60)
    assert processes[rank].exitcode == -signal.SIGKILL
    assert processes[1 - rank].exitcode == 1
    assert check(tmp_path) == expected
