"""The index of one tar shard: where each record's members lie, as a few flat arrays.

Made once by reading the shard's headers and kept beside it as `SHARD.tar.index.json`, where that
folder can be written to. A shard of a million records costs some tens of megabytes.
"""

import dataclasses
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3o.core.errors import UsageError

PICTURE_SUFFIXES = ("png", "jpg", "jpeg", "webp")
_SUFFIXES = (*PICTURE_SUFFIXES, "json", "txt")
_VERSION = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardIndex:
    """Members of the records of one shard; record r owns members starts[r] to starts[r + 1].

    Args:
        keys: name of each record [records], UTF-8.
        starts: number of its first member [records + 1].
        suffixes: every different text after a key ("png", "source.png", "json").
        kinds: suffix of each member, as a place in `suffixes` [members].
        offsets: where each member's bytes begin [members].
        sizes: how many bytes it has [members].
    """

    keys: NDArray[np.bytes_]
    starts: NDArray[np.int64]
    suffixes: tuple[str, ...]
    kinds: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)


def load_index(path: Path) -> ShardIndex | None:
    """Returns the index kept beside a shard, or None if there is none of this very shard.

    Args:
        path: the shard.
    """
    try:
        stored = json.loads(_side_car(path).read_text(encoding="utf-8"))
        return _from_lists(stored) if stored["stamp"] == _stamp(path) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def make_index(path: Path) -> ShardIndex:
    """Returns the index of a shard by reading all its headers; keeps it beside the shard.

    Args:
        path: the shard.

    Raises:
        UsageError: if the shard cannot be read, is no plain tar or is damaged.
    """
    try:
        lists = {"stamp": _stamp(path), **_scan(path)}
    except (tarfile.TarError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"shard {path} is damaged or no plain tar: {reason}; fetch or write it again"
        ) from error
    try:
        scratch = path.with_name(f".{path.name}.index.{os.getpid()}")
        scratch.write_text(json.dumps(lists, separators=(",", ":")), encoding="utf-8")
        os.replace(scratch, _side_car(path))
    except OSError:
        pass  # a read-only folder: the index lives in memory only
    return _from_lists(lists)


def _side_car(path: Path) -> Path:
    return path.with_name(path.name + ".index.json")


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [_VERSION, status.st_size, status.st_mtime_ns]


def _from_lists(lists: dict[str, Any]) -> ShardIndex:
    keys = [key.encode() for key in lists["keys"]]
    return ShardIndex(
        keys=np.array(keys, dtype=bytes),
        starts=np.concatenate([[0], np.cumsum(lists["counts"], dtype=np.int64)]),
        suffixes=tuple(lists["suffixes"]),
        kinds=np.array(lists["kinds"], dtype=np.int64),
        offsets=np.array(lists["offsets"], dtype=np.int64),
        sizes=np.array(lists["sizes"], dtype=np.int64),
    )


def _scan(path: Path) -> dict[str, Any]:
    keys: list[str] = []
    counts: list[int] = []
    suffixes: dict[str, int] = {}
    members: list[tuple[int, int, int]] = []
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            tar.members = []  # pyrefly: ignore[missing-attribute]  (tarfile would keep them all)
            key, suffix = _split_name(member.name)
            if not member.isfile() or not key or suffix.rpartition(".")[2] not in _SUFFIXES:
                continue
            if not keys or keys[-1] != key:
                keys.append(key)
                counts.append(0)
            counts[-1] += 1
            kind = suffixes.setdefault(suffix, len(suffixes))
            members.append((kind, member.offset_data, member.size))
        _check_end(path, tar.offset)
    kinds, offsets, sizes = zip(*members, strict=True) if members else ((), (), ())
    return {
        "keys": keys,
        "counts": counts,
        "suffixes": list(suffixes),
        "kinds": kinds,
        "offsets": offsets,
        "sizes": sizes,
    }


def _split_name(name: str) -> tuple[str, str]:
    """Returns the key and the suffix; no key for hidden files, such as a Mac's `._a.png`."""
    folder, _, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return (f"{folder}/{stem}" if folder and stem else stem), suffix.lower()


def _check_end(path: Path, offset: int) -> None:
    # tarfile takes a cut or damaged header for the end: only the end's own mark is proof of it.
    with path.open("rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"it breaks off at byte {offset}")
