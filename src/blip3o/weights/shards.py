"""Tensors in safetensors files, one file or shards with an index, read lazily and written whole.

    NAME.safetensors
    NAME-00001-of-0000M.safetensors ... and NAME.safetensors.index.json

Both forms are what the Hugging Face libraries write. Files that hold pickles are never opened.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.files import atomic_file, write_atomic

MAX_SHARD_BYTES = 5 * 2**30
"""Most bytes of tensors in one file; also what writing needs of memory."""

PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

_GET_IT = "get it from where the model came from (hf download fetches what is missing)"


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in a file and is read when it is needed.

    Args:
        file: the open safetensors file.
        key: its name there.
        shape: the shape it is read in; as many elements as the file holds.
    """

    file: Any
    key: str
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """Returns the tensor; its memory is the file's, mapped, until someone copies it."""
        return self.file.get_tensor(self.key).reshape(self.shape)


def has_tensors(folder: Path, name: str) -> bool:
    """Returns whether a folder holds tensors under a name, whole or sharded."""
    return _single(folder, name).is_file() or _index(folder, name).is_file()


def open_tensors(folder: Path, name: str = "model") -> dict[str, StoredTensor]:
    """Returns the tensors of a folder by name; only the files' headers are read.

    Args:
        folder: holds the file, or the shards and their index.
        name: the front of the file names.

    Raises:
        UsageError: for missing or damaged files, an index that does not say what the shards hold,
            or a folder that holds pickles only; one line that names them all.
    """
    single, index = _single(folder, name), _index(folder, name)
    if index.is_file():
        return _open_shards(folder, index)
    if single.is_file():
        return _open_file(single)
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLE_ENDINGS)
    if pickles:
        known = any(pickle.startswith("pytorch_model") for pickle in pickles)
        trust = ", or, if you trust its source, blip3o convert --allow-pickle" if known else ""
        raise UsageError(
            f"{single} is missing; {', '.join(pickles)} may be pickles, which can run any program "
            f"and are not opened: take the safetensors files of the model{trust}"
        )
    raise UsageError(f"{single} is missing; the model folder is incomplete: {_GET_IT}")


def write_tensors(
    folder: Path, tensors: Mapping[str, Tensor | StoredTensor], name: str = "model"
) -> None:
    """Writes tensors into a folder: one file, or shards and an index if they are too many.

    Files of the same name are replaced one by one; what another number of shards left is removed.

    Args:
        folder: created if missing.
        tensors: by name; those in files are read shard by shard.
        name: the front of the file names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(tensors))
    files = [f"{name}.safetensors"]
    if len(shards) > 1:
        count = len(shards)
        files = [f"{name}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    num_bytes = 0
    for file, keys in zip(files, shards, strict=True):
        shard = {key: read(tensors[key]) for key in keys}
        num_bytes += sum(tensor.nbytes for tensor in shard.values())
        with atomic_file(folder / file) as scratch:
            save_file(shard, scratch, metadata={"format": "pt"})
            scratch.chmod(0o644)  # the library writes files that only their owner may read
    for old in (_single(folder, name), *folder.glob(f"{name}-?????-of-?????.safetensors")):
        if old.name not in files:
            old.unlink(missing_ok=True)
    if len(shards) == 1:
        _index(folder, name).unlink(missing_ok=True)
        return
    places = {key: file for file, keys in zip(files, shards, strict=True) for key in keys}
    content = {"metadata": {"total_size": num_bytes}, "weight_map": places}
    write_atomic(_index(folder, name), json.dumps(content, indent=2) + "\n")


def _single(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _index(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors.index.json"


def read(tensor: Tensor | StoredTensor) -> Tensor:
    """Returns a tensor that may lie in a file."""
    return tensor.read() if isinstance(tensor, StoredTensor) else tensor


def _shards(tensors: Mapping[str, Tensor | StoredTensor]) -> Iterator[list[str]]:
    """Yields the names of each shard's tensors, in order; at least one shard."""
    keys: list[str] = []
    size = 0
    for key, tensor in tensors.items():
        more = read(tensor).nbytes  # mapped and not yet read from the disk
        if keys and size + more > MAX_SHARD_BYTES:
            yield keys
            keys, size = [], 0
        keys.append(key)
        size += more
    yield keys


def _open_file(file: Path) -> dict[str, StoredTensor]:
    try:
        opened: Any = safe_open(file, framework="pt")
        return {
            key: StoredTensor(opened, key, tuple(opened.get_slice(key).get_shape()))
            for key in opened.keys()  # noqa: SIM118  (no mapping)
        }
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file} is damaged and cannot be read: {error}") from error


def _open_shards(folder: Path, index: Path) -> dict[str, StoredTensor]:
    places = _read_index(index)
    tensors: dict[str, StoredTensor] = {}
    problems: list[str] = []
    for name in sorted(set(places.values())):
        if not (folder / name).is_file():
            problems.append(f"{folder / name} is missing: {_GET_IT}")
            continue
        try:
            held = _open_file(folder / name)
        except UsageError as error:
            problems.append(str(error))
            continue
        listed = {key for key, place in places.items() if place == name}
        for what, keys in (("lacks", listed - held.keys()), ("also holds", held.keys() - listed)):
            if keys:
                said = ", ".join(sorted(keys))
                problems.append(f"{index.name} does not fit {name}, which {what} {said}")
        tensors |= held
    if problems:
        raise UsageError(f"weights in {folder} cannot be used: {'; '.join(problems)}")
    return tensors


def _read_index(index: Path) -> dict[str, str]:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = set(places.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{index} is no index of shards: {error!r}") from error
    unfit = sorted(repr(n) for n in names if not isinstance(n, str) or not _is_shard_name(n))
    if unfit or not names:
        said = f"it names {', '.join(unfit)}" if unfit else "it names none"
        raise UsageError(f"{index} must name safetensors files beside it; {said}")
    return places


def _is_shard_name(name: str) -> bool:
    """Returns whether a name of an index is a safetensors file in the index's own folder."""
    return name.endswith(".safetensors") and not {"/", "\\"} & set(name)
