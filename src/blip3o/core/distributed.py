"""The processes of one run: which one this is, and what they tell each other.

torchrun, or Slurm (`scripts/slurm`), starts one process for each device and names it in RANK,
LOCAL_RANK and WORLD_SIZE. Without them a run is one process, and nothing here costs anything: torch
is imported by those who join others only, since whoever prints a line asks whether it is the first.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch.distributed as dist

T = TypeVar("T")

_PATIENCE = timedelta(hours=1)
"""How long processes wait for one that draws samples, caches features or writes a model."""


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the processes that a launcher started; also a decorator. Nested, the outer one counts.

    Tensors on the CPU travel by gloo, those on a GPU by nccl; each process takes the GPU of its
    local rank.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _joined() is not None:
        yield
        return
    import torch
    import torch.distributed as dist

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


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
