"""The processes of one run: their ranks, and the exchange of values between them.

torchrun or Slurm (`scripts/slurm`) starts one process for each device and sets its RANK, LOCAL_RANK
and WORLD_SIZE. Without these variables a run is a single process, and torch is not imported here:
every printed line calls `is_main`, which must stay cheap for commands that do not use torch.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from blip3o.core.errors import UsageError, first_line

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")

_TIMEOUT = timedelta(hours=1)
"""How long processes wait for one that generates samples, caches features or saves a model."""

_NUM_TASKS = (
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_NTASKS",
    "SLURM_NPROCS",
)
"""Variables in which launchers state their number of processes. The innermost launcher comes first,
because a Slurm job of eight tasks can have a step of one task."""


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the processes that a launcher started; also a decorator. A nested use has no effect.

    Tensors on the CPU are sent by gloo, tensors on a GPU by nccl. Each process uses the GPU of its
    local rank.

    Raises:
        UsageError: if a launcher started several processes without setting their ranks, or the
            other processes cannot be reached.
    """
    if _is_joined() or count_processes(os.environ) == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(_local_rank(os.environ, torch.cuda.device_count()))
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UsageError(
            f"cannot join the other processes at {place}: {first_line(error)}"
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def count_processes(environ: Mapping[str, str]) -> int:
    """Returns the number of processes of this run according to the launcher's variables.

    Args:
        environ: the environment of this process.

    Raises:
        UsageError: if RANK, WORLD_SIZE or the address are inconsistent, or if a launcher that does
            not set them started several processes, each of which would run on its own.
    """
    if "WORLD_SIZE" not in environ or "RANK" not in environ:
        _refuse_other_launchers(environ)
    size = _number(environ, "WORLD_SIZE", 1)
    rank = _number(environ, "RANK", 0)
    if not 0 <= rank < size:
        raise UsageError(
            f"RANK={rank} does not fit WORLD_SIZE={environ.get('WORLD_SIZE', 'unset')}: start "
            "several processes with torchrun, or unset both for one process"
        )
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if size > 1 else ():
        if not environ.get(name):
            raise UsageError(
                f"WORLD_SIZE={size}, but {name} is not set: start several processes with "
                "torchrun, or unset WORLD_SIZE for one process"
            )
    return size


def _refuse_other_launchers(environ: Mapping[str, str]) -> None:
    name = next((name for name in _NUM_TASKS if environ.get(name, "").isdecimal()), None)
    if name is not None and int(environ[name]) > 1:
        raise UsageError(
            f"{name}={environ[name]}, but RANK and WORLD_SIZE are not set, so each of these "
            "processes would be a run of its own: start them with torchrun, or with srun as "
            "scripts/slurm/train.sbatch does; for one process alone: srun --ntasks=1"
        )


def _local_rank(environ: Mapping[str, str], num_devices: int) -> int:
    """Returns the index of this process's GPU on its machine."""
    if "LOCAL_RANK" not in environ:
        raise UsageError("LOCAL_RANK is not set: torchrun and scripts/slurm/train.sbatch do it")
    local = _number(environ, "LOCAL_RANK", 0)
    if not 0 <= local < num_devices:
        raise UsageError(
            f"LOCAL_RANK={local}, but this machine has {num_devices} GPUs: start as many "
            "processes on each machine as it has GPUs"
        )
    return local


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise UsageError(
            f"{name} must be a whole number, got {text!r}: a launcher such as torchrun sets it; "
            "unset it for one process"
        ) from None


def rank() -> int:
    """Returns the number of this process, from 0."""
    if not _is_joined():
        return 0
    import torch.distributed as dist

    return dist.get_rank()


def world_size() -> int:
    """Returns the number of processes."""
    if not _is_joined():
        return 1
    import torch.distributed as dist

    return dist.get_world_size()


def is_main() -> bool:
    """Returns whether this process logs, generates samples and names checkpoints."""
    return rank() == 0


def exchange(value: T, group: "ProcessGroup | None" = None) -> list[T]:
    """Returns the value of every process, in order of rank; this also waits for all of them.

    Args:
        value: the value of this process; small, and of any type that can be pickled.
        group: a group of its own for calls from a thread. Calls of one group must come in the same
            order in every process.
    """
    if not _is_joined():
        return [value]
    import torch.distributed as dist

    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value, group)
    return values


@contextmanager
def main_first() -> Iterator[None]:
    """Runs a block in the main process first; the others then find its results."""
    if not is_main():
        exchange(None)
    try:
        yield
    finally:
        if is_main():
            exchange(None)


def _is_joined() -> bool:
    """Returns whether this process has joined others; only then is torch.distributed imported."""
    dist = sys.modules.get("torch.distributed")
    return dist is not None and bool(dist.is_initialized())
