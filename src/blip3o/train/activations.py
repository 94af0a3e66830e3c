"""Chooses activation checkpointing by the memory that the backward pass of a step would need."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from blip3o.core.log import say

_SHARE = 0.5
"""Share of the free memory that activations may fill.

Later batches may be larger than the first one, and kernels need room for their own work.
"""
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def count_activations(forward: Callable[[], object], weights: Iterable[Tensor]) -> int:
    """Returns the bytes that a forward pass would keep for its backward pass.

    The pass keeps none of them, so it needs no more memory than one without gradients.

    Args:
        forward: the pass. Compiled modules run as plain code.
        weights: tensors that exist anyway and do not count.
    """
    # A weak reference keeps the address of a freed storage from being given to another one.
    seen = {storage._cdata: StorageWeakRef(storage) for storage in map(_storage, weights)}
    total = 0

    def pack(tensor: Tensor) -> None:
        nonlocal total
        storage = _storage(tensor)
        if storage._cdata not in seen:
            seen[storage._cdata] = StorageWeakRef(storage)
            total += storage.nbytes()

    def unpack(_: None) -> Tensor:
        raise AssertionError("a counted pass has no backward pass")

    with saved_tensors_hooks(pack, unpack), torch.compiler.set_stance("force_eager"):
        forward()
    return total


def needs_checkpointing(activations: int, more: int, device: torch.device) -> bool:
    """Returns whether blocks must run again in the backward pass; prints the reason if they must.

    Args:
        activations: bytes that a step would keep for its backward pass.
        more: bytes of gradients and moments that do not exist yet.
        device: device of the run.
    """
    free = _free_bytes(device)
    if free is None or activations <= _SHARE * (free - more):
        return False
    say(
        f"activation checkpointing is on: a step would keep {activations / 2**30:.1f} GiB of "
        f"activations, and {(free - more) / 2**30:.1f} GiB are free"
    )
    return True


def _free_bytes(device: torch.device) -> int | None:
    """Returns the free memory of a device; None if it is unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu" or not _MEMINFO.exists():
        return None
    facts = dict(line.split(":") for line in _MEMINFO.read_text(encoding="ascii").splitlines())
    free = int(facts["MemAvailable"].split()[0]) * 1024
    try:  # a container may have less; its cache of files makes room
        limit = int((_CGROUP / "memory.max").read_text(encoding="ascii"))
        stat = (_CGROUP / "memory.stat").read_text(encoding="ascii")
    except (OSError, ValueError):  # no limit
        return free
    return min(free, limit - int(dict(line.split() for line in stat.splitlines())["anon"]))


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()
