"""Tensors in safetensors files: one file, or shards with an index. They are read on demand.

    NAME.safetensors
    NAME-00001-of-0000M.safetensors ... and NAME.safetensors.index.json

The Hugging Face libraries write both forms; a single file takes precedence over shards, as there.
Pickles are never opened.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.files import atomic_file, write_atomic
from blip3o.weights.small_files import read_json, refuse_pointer
from blip3o.weights.strict import TensorT, fold, fold_sentences

MAX_SHARD_BYTES = 5 * 2**30
"""Largest number of bytes of tensors in one file; writing needs as much memory."""

PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

_FILES_OF_A_FOLDER, _NAMES_OF_A_SHARD = 400, 120
"""Largest number of characters for the names of files, and for the weights of one shard."""

_GET_IT = "get it from the source of the model (hf download fetches missing files)"

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
"""Dtypes by their names in safetensors files."""

_FSDP = "its weights are in FSDP's shards: gather them with accelerate merge-weights"
_OTHER_FORMS = {
    "adapter_model.safetensors": (
        "it holds an adapter without its model: load both with PEFT and save the result of "
        "merge_and_unload()"
    ),
    "zero_to_fp32.py": (
        "its weights are in DeepSpeed's shards: run `python zero_to_fp32.py . . "
        "--safe_serialization` in it to gather them"
    ),
    "*.distcp": _FSDP,
    "pytorch_model_fsdp_*": _FSDP,
}
"""Files that other trainers write instead of weights, with advice for each."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, read on demand.

    Args:
        file: the open safetensors file.
        path: path of the file.
        key: name of the tensor in the file.
        shape: shape of the tensor as it is read; it may differ from the shape in the file.
        dtype: dtype of the tensor.
    """

    file: safe_open
    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def reshape(self, shape: tuple[int, ...], /) -> Self:
        """Returns the same tensor, to be read in another shape."""
        return dataclasses.replace(self, shape=shape)

    def read(self) -> Tensor:
        """Returns the tensor; it shares memory with the mapped file.

        Raises:
            UsageError: if it holds non-finite numbers.
        """
        tensor = self.file.get_tensor(self.key).reshape(self.shape)
        require_finite(tensor, self.key, self.path)
        return tensor


Weight = Tensor | StoredTensor
"""A weight in memory or in a file."""


def has_tensors(folder: Path, name: str) -> bool:
    """Returns whether a folder contains tensors under a name, in one file or in shards."""
    return _single(folder, name).is_file() or _index(folder, name).is_file()


def open_tensors(folder: Path, name: str = "model") -> dict[str, StoredTensor]:
    """Returns the tensors of a folder by name; reads only the headers of the files.

    Args:
        folder: contains the file, or the shards and their index.
        name: first part of the file names.

    Raises:
        UsageError: for missing or damaged files, an index that does not match the shards, or a
            folder with pickles only; one line names all of them.
    """
    single, index = _single(folder, name), _index(folder, name)
    if single.is_file():  # transformers may leave the index of removed shards next to it
        return _open_file(single)
    if index.is_symlink() or index.exists():
        return _open_shards(folder, index)
    if advice := other_form(folder):
        raise UsageError(f"{single} is missing; {folder} is not a whole model: {advice}")
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLE_ENDINGS)
    if pickles:
        known = any(pickle.startswith("pytorch_model") for pickle in pickles)
        trust = ", or, if you trust its source, blip3o convert --allow-pickle" if known else ""
        raise UsageError(
            f"{single} is missing; {fold(pickles)} may be pickles, which can run any program "
            f"and are not opened: use the safetensors files of the model{trust}"
        )
    raise UsageError(f"{single} is missing; the model folder is incomplete: {_GET_IT}")


def other_form(folder: Path) -> str | None:
    """Returns advice about a folder with a trainer's files instead of weights, or None.

    Args:
        folder: any folder.
    """
    forms = _OTHER_FORMS.items()
    return next((advice for form, advice in forms if any(folder.glob(form))), None)


def write_tensors(folder: Path, tensors: Mapping[str, Weight], name: str = "model") -> None:
    """Writes tensors into a folder: one file, or shards and an index if they are too large.

    Files of the same name are replaced one by one; other shards of an earlier save are removed.

    Args:
        folder: created if missing.
        tensors: by name; stored tensors are read shard by shard.
        name: first part of the file names.
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
            scratch.chmod(0o644)  # the library makes files readable by their owner only
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
    """Returns the path of the index; a variant (`NAME.bf16`) is placed as diffusers does it."""
    stem, _, variant = name.partition(".")
    ending = f"{variant}.json" if variant else "json"
    return folder / f"{stem}.safetensors.index.{ending}"


def read(tensor: Weight) -> Tensor:
    """Returns a tensor in memory, read from its file if it is stored."""
    return tensor.read() if isinstance(tensor, StoredTensor) else tensor


def under(prefix: str, tensors: Mapping[str, TensorT]) -> dict[str, TensorT]:
    """Returns the tensors whose names begin with a prefix, by the rest of their names."""
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def require_finite(tensor: Tensor, name: str, where: Path | str) -> None:
    """Refuses a tensor with NaN or infinity; one sum usually suffices to check it.

    Args:
        tensor: any tensor; integers pass.
        name: name of the tensor, for the message.
        where: file or folder of the tensor, for the message.

    Raises:
        UsageError: if a number is not finite.
    """
    if not tensor.is_floating_point() or tensor.device.type == "meta":
        return
    values = tensor.float() if tensor.itemsize == 1 else tensor
    if not bool(values.sum().isfinite()):  # the sum of large numbers may overflow
        count = int((~values.isfinite()).sum())
        if count:
            raise UsageError(
                f"{where} is damaged: {name} holds {count:,} numbers that are NaN or infinite"
            )


def _shards(tensors: Mapping[str, Weight]) -> Iterator[list[str]]:
    """Yields the names of each shard's tensors, in order; at least one shard."""
    keys: list[str] = []
    size = 0
    for key, tensor in tensors.items():
        more = tensor.nbytes
        if keys and size + more > MAX_SHARD_BYTES:
            yield keys
            keys, size = [], 0
        keys.append(key)
        size += more
    yield keys


def _open_file(file: Path) -> dict[str, StoredTensor]:
    refuse_pointer(file)
    try:
        opened = safe_open(file, framework="pt")
        slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118  (not a mapping)
        types = {key: one.get_dtype() for key, one in slices.items()}
        shapes = {key: tuple(one.get_shape()) for key, one in slices.items()}
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file} is damaged and cannot be read: {error}") from error
    strange = [f"{key} {kind}" for key, kind in types.items() if kind not in _TYPES]
    if strange:
        raise UsageError(f"{file} holds numbers of unsupported types: {fold(strange)}")
    return {
        key: StoredTensor(opened, file, key, shapes[key], _TYPES[kind])
        for key, kind in types.items()
    }


def _open_shards(folder: Path, index: Path) -> dict[str, StoredTensor]:
    places = read_index(index, ".safetensors")
    names = sorted(set(places.values()))
    tensors: dict[str, StoredTensor] = {}
    problems: list[str] = []
    missing = [f"{folder / name} is missing" for name in names if not (folder / name).is_file()]
    if missing:
        problems.append(f"{fold(missing, _FILES_OF_A_FOLDER)}: {_GET_IT}")
    for name in names:
        if not (folder / name).is_file():
            continue
        try:
            held = _open_file(folder / name)
        except UsageError as error:
            problems.append(str(error))
            continue
        listed = {key for key, place in places.items() if place == name}
        for what, keys in (("lacks", listed - held.keys()), ("also holds", held.keys() - listed)):
            if keys:
                said = fold(sorted(keys), _NAMES_OF_A_SHARD)
                problems.append(f"{index.name} does not fit {name}, which {what} {said}")
        tensors |= held
    if problems:
        raise UsageError(f"weights in {folder} cannot be used: {fold_sentences(problems)}")
    return tensors


def read_index(index: Path, ending: str = "") -> dict[str, str]:
    """Returns the file names of tensors, by the names of the tensors.

    Args:
        index: an index of shards.
        ending: required ending of the file names.

    Raises:
        UsageError: if the index is invalid, or names anything but files in its own folder.
    """
    content = read_json(index, fault="is not an index of shards")
    given = content.get("weight_map") if isinstance(content, Mapping) else None
    if not isinstance(given, Mapping):
        raise UsageError(f"{index} is not an index of shards: it needs a mapping 'weight_map'")
    places = {
        key: name
        for key, name in given.items()
        if isinstance(name, str) and name.endswith(ending) and not {"/", "\\"} & set(name)
    }
    unfit = sorted({repr(name) for key, name in given.items() if key not in places})
    if unfit or not places:
        said = f"it names {fold(unfit)}" if unfit else "it names none"
        wanted = f"*{ending} files" if ending else "files"
        raise UsageError(f"{index} must name {wanted} in its own folder; {said}")
    return places
