"""Stores the tensors of a run: `torch.distributed.checkpoint` on top of safetensors.

Every process writes its own tensors to three files: weights, averages, moments. The header of a
file tells which slice of which tensor each entry is, so any number of processes can read it. With
one process the files are plain safetensors. Reading them executes no code.

Disks and networks flip bits. A checkpoint therefore also stores the `hashes` of its folder, and
checks them before it reads.
"""

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from blip3o.core.distributed import exchange, is_main, rank, world_size

STORE_ERRORS = (SafetensorError, CheckpointException)
"""Errors of reading and writing, in addition to OSError."""

# A single process has no process group, on purpose.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


class TensorStore:
    """Writes and reads named tensors, whole or sharded, together with the other processes."""

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        self._mesh: DeviceMesh | None = None
        if world_size() > 1:
            # Its own group: the writer thread communicates while the main thread runs steps.
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup)
            self._group = group
            self._mesh = init_device_mesh("cpu", (world_size(),))

    def copy(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns copies of named tensors on the CPU."""
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
        """Writes and flushes the tensors of this process.

        Args:
            folder: an empty folder.
            tensors: on the CPU, named `GROUP/...`; each group gets its own file.

        Raises:
            CheckpointException: if any process failed.
        """
        files = sorted({name.partition("/")[0] for name in tensors})
        numbers = {name: files.index(name.partition("/")[0]) + 1 for name in tensors}
        writer = HuggingFaceStorageWriter(str(folder), numbers, save_distributed=True)
        tensors = dict(sorted(tensors.items()))  # in a resumed run the moments have another order
        dcp.save(tensors, storage_writer=writer, process_group=self._group)

    def shapes(self, folder: Path) -> dict[str, torch.Size]:
        """Returns the whole shapes of the tensors in a folder, by name.

        Args:
            folder: a folder that `write` filled.

        Raises:
            SafetensorError: if a file is damaged.
        """
        stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        return {
            name: about.size
            for name, about in stored.items()
            if isinstance(about, TensorStorageMetadata)
        }

    def read(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        """Fills tensors in place; the number of processes may differ from that of the writers.

        Args:
            folder: a folder that `write` filled.
            tensors: by name, with the stored shapes.

        Raises:
            CheckpointException: if any process failed.
        """
        reader = HuggingFaceStorageReader(str(folder))
        dcp.load(dict(tensors), storage_reader=reader, process_group=self._group)

    def hashes(self, folder: Path) -> dict[str, str]:
        """Returns the hash of every file in a folder, by name; the processes share the work.

        Args:
            folder: a folder that `write` filled.

        Raises:
            OSError: on all processes, if any of them cannot read a file.
            ValueError: on all processes, if a file is not in safetensors format.
        """
        files = sorted(folder.glob("*.safetensors"))
        count, failed = world_size(), None
        mine: dict[str, str] = {}
        # A file name begins with the rank that wrote it, so a process mostly hashes its own files,
        # which are still in memory.
        for file in files[rank() * len(files) // count : (rank() + 1) * len(files) // count]:
            try:
                mine[file.name] = content_hash(file)
            except (OSError, ValueError) as error:
                failed = failed or error
        reports = exchange((mine, failed), self._group)
        for _, error in reports:
            if error is not None:
                raise error
        return {name: value for part, _ in reports for name, value in part.items()}

    def on_main(self, action: Callable[[], None]) -> None:
        """Runs an action on the main process while the others wait.

        Raises:
            OSError: on all processes, if the action raised it.
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
    """Returns a hash of a safetensors file that depends on its content only.

    The library writes the entries of the header in random order, so they are sorted first.

    Args:
        file: the file.

    Raises:
        ValueError: if its header is missing or damaged.
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
    """Returns the reason of a store's failure as one line; of several failures, the first."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return str(error)


def _to_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
