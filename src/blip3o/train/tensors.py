"""Tensors of a run in files: `torch.distributed.checkpoint` with safetensors underneath.

Every process writes what it holds, in three files: weights, averages, moments. The header of each
tells which part of which tensor a piece is, so that any number of processes can read it, and with
one process the files are plain safetensors. Nothing in them is executed when read.

Disks and networks change bits. So whoever keeps a folder also keeps its `hashes`, and has them
checked before it reads.
"""

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from blip3o.core.distributed import exchange, is_main, rank, world_size

STORE_ERRORS = (SafetensorError, CheckpointException)
"""What reading and writing raise, besides OSError."""

# One process needs no process group, and says so on purpose.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


class TensorStore:
    """Writes and reads named tensors, whole or sharded, together with the other processes."""

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        self._mesh: Any = None
        if world_size() > 1:
            # A group of its own: a thread writes while the main one talks about the next steps.
            self._group = cast("dist.ProcessGroup", dist.new_group(backend="gloo"))
            self._mesh = init_device_mesh("cpu", (world_size(),))

    def copy(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns copies on the CPU, which training does not change.

        Args:
            tensors: by name.
        """
        return {name: self._copy(tensor) for name, tensor in tensors.items()}

    def _copy(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, DTensor):
            return _to_cpu(tensor)
        return DTensor.from_local(
            _to_cpu(tensor.to_local()),
            self._mesh,
            tensor.placements,
            run_check=False,
            shape=tensor.shape,
            stride=tensor.stride(),
        )

    def write(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        """Writes and flushes this process's part.

        Args:
            folder: an empty folder.
            tensors: on the CPU, named `file/...`; each first part makes a file.

        Raises:
            CheckpointException: if any process could not.
        """
        files = sorted({name.partition("/")[0] for name in tensors})
        numbers = {name: files.index(name.partition("/")[0]) + 1 for name in tensors}
        writer = HuggingFaceStorageWriter(str(folder), numbers, save_distributed=True)
        tensors = dict(sorted(tensors.items()))  # a resumed run has AdamW's in another order
        dcp.save(tensors, storage_writer=writer, process_group=self._group)

    def shapes(self, folder: Path) -> dict[str, torch.Size]:
        """Returns the whole shapes of the tensors in a folder, by name.

        Args:
            folder: what `write` wrote.

        Raises:
            SafetensorError: if a file is damaged.
        """
        stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        return {name: about.size for name, about in stored.items()}  # type: ignore[union-attr]

    def read(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        """Fills tensors in place, whatever number of processes wrote them.

        Args:
            folder: what `write` wrote.
            tensors: by name, of the stored shapes.

        Raises:
            CheckpointException: if any process could not.
        """
        reader = HuggingFaceStorageReader(str(folder))
        dcp.load(dict(tensors), storage_reader=reader, process_group=self._group)

    def hashes(self, folder: Path) -> dict[str, str]:
        """Returns the hash of every file in a folder, by name; the processes share the work.

        Args:
            folder: what `write` wrote.

        Raises:
            OSError: on all processes, if one of them cannot read a file.
            ValueError: likewise, if a file is no safetensors file.
        """
        files = sorted(folder.glob("*.safetensors"))
        count, failed = world_size(), None
        mine: dict[str, str] = {}
        # Names begin with the number of the process that wrote the file: it reads from memory.
        for file in files[rank() * len(files) // count : (rank() + 1) * len(files) // count]:
            try:
                mine[file.name] = content_hash(file)
            except (OSError, ValueError) as error:
                failed = failed or error
        told = exchange((mine, failed), self._group)
        for _, error in told:
            if error is not None:
                raise error
        return {name: value for part, _ in told for name, value in part.items()}

    def on_main(self, action: Callable[[], None]) -> None:
        """Does something on the main process, while the others wait.

        Args:
            action: what to do.

        Raises:
            OSError: on all of them, if it failed.
        """
        failed = None
        if is_main():
            try:
                action()
            except OSError as error:
                failed = error
        for error in exchange(failed, self._group):
            if error is not None:
                raise error


def content_hash(file: Path) -> str:
    """Returns a hash of a safetensors file that is the same for the same content.

    The library writes the entries of the header in another order each time, so they are sorted.

    Args:
        file: the file.

    Raises:
        ValueError: if it has no header.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError(f"{file.name} is damaged")
        try:
            header = json.loads(stream.read(length))
        except RecursionError as error:
            raise ValueError(f"{file.name} is damaged") from error
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        return hashlib.file_digest(stream, lambda: digest).hexdigest()


def reason_of(error: BaseException) -> str:
    """Returns why a store failed, as one line.

    Args:
        error: what it raised; of several processes, the first one counts.
    """
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return str(error)


def _to_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
