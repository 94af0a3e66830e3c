"""The processes of one run: which one this is, and what they tell each other.

torchrun, or Slurm (`scripts/slurm`), starts one process for each device and names it in RANK,
LOCAL_RANK and WORLD_SIZE. Without them a run is one process, and nothing here costs anything: torch
is imported by those who join others only, since whoever prints a line asks whether it is the first.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from blip3o.core.errors import UsageError

if TYPE_CHECKING:
    import torch.distributed as dist

T = TypeVar("T")

_PATIENCE = timedelta(hours=1)
"""How long processes wait for one that draws samples, caches features or writes a model."""

_NUM_TASKS = (
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_NTASKS",
    "SLURM_NPROCS",
)
"""Where launchers say how many processes they start; the innermost launcher first: a job of eight
tasks may well have a step of one."""


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the processes that a launcher started; also a decorator. Nested, the outer one counts.

    Tensors on the CPU travel by gloo, those on a GPU by nccl; each process takes the GPU of its
    local rank.

    Raises:
        UsageError: if a launcher started several processes and did not say which one this is, or
            the others cannot be joined.
    """
    if _joined() is not None or count_processes(os.environ) == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(_local_rank(os.environ, torch.cuda.device_count()))
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(f"cannot join the other processes at {place}: {reason}") from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def count_processes(environ: Mapping[str, str]) -> int:
    """Returns how many processes of a run a launcher started, as its variables say.

    Args:
        environ: the environment of this process.

    Raises:
        UsageError: if RANK, WORLD_SIZE or the address do not fit, or a launcher that does not set
            them started several processes: each would take itself for the only one.
    """
    if "WORLD_SIZE" not in environ or "RANK" not in environ:
        _refuse_strangers(environ)
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


def _refuse_strangers(environ: Mapping[str, str]) -> None:
    name = next((name for name in _NUM_TASKS if environ.get(name, "").isdecimal()), None)
    if name is not None and int(environ[name]) > 1:
        raise UsageError(
            f"{name}={environ[name]}, but RANK and WORLD_SIZE are not set, so each of these "
            "processes would be a run of its own: start them with torchrun, or with srun as "
            "scripts/slurm/train.sbatch does; for one process alone: srun --ntasks=1"
        )


def _local_rank(environ: Mapping[str, str], num_devices: int) -> int:
    """Returns which GPU of its machine is this process's."""
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
    dist = _joined()
    return 0 if dist is None else dist.get_rank()


def world_size() -> int:
    """Returns the number of processes."""
    dist = _joined()
    return 1 if dist is None else dist.get_world_size()


def is_main() -> bool:
    """Returns whether this is the process that logs, draws samples and names checkpoints."""
    return rank() == 0


def exchange(value: T, group: "dist.ProcessGroup | None" = None) -> list[T]:
    """Returns the value of every process, in order of rank; so it also waits for all of them.

    Args:
        value: what this process says; small, and anything that pickles.
        group: for threads: messages of one group must come in the same order everywhere.
    """
    dist = _joined()
    if dist is None:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group)
    return values


@contextmanager
def main_first() -> Iterator[None]:
    """Lets the main process go through a block first; the others find done what it did there."""
    if not is_main():
        exchange(None)
    try:
        yield
    finally:
        if is_main():
            exchange(None)


def _joined() -> Any:  # noqa: ANN401  (a module)
    """Returns torch.distributed if this process has joined others, else None."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_initialized() else None
