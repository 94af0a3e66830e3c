"""The files of a feature cache: one for each shard of a source.

    FOLDER/SOURCE.ROLE.ENCODER/SHARD.features

SHARD is a hash of the shard's records, the image encoder, its preprocessing and the role, so a file
never holds features of anything else. It is stored whole or not at all, in any folder or store:

    for each record: its features, float16 [N, C], and their hash
    JSON with the shape of the features and the records whose image is unreadable
    hash of the JSON, and its length in 8 bytes
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from blip3o.core.lock import locked
from blip3o.data.sources import Source
from blip3o.data.sources.files import REMOTE_READS, NoSuchFileError, Store, is_remote, store_of

_VERSION = 1
"""Part of the names; raise it when the content of a file changes."""
_HASH_BYTES = 16
_LENGTH_BYTES = 8
_INFO = "info"
"""Place of the description in its hash."""


class LeftOut(TypedDict):
    """A record whose image is unreadable; `row` is its number in the shard."""

    row: int
    key: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardInfo:
    """The description of a shard's features.

    Args:
        shape: shape of the features of one image.
        left_out: records whose image is unreadable, by their number in the shard.
    """

    shape: tuple[int, ...]
    left_out: dict[int, LeftOut]


class CacheFiles:
    """The files of one source and role; they need not exist.

    Args:
        folder: folder of the cache, or its address in a store.
        source: the records.
        role: role of the image in each record.
        fingerprint: identifies encoder, weights and preprocessing.
    """

    def __init__(self, folder: str, source: Source, role: str, fingerprint: str) -> None:
        self.folder = f"{folder.rstrip('/')}/{source.name}.{role}.{fingerprint[:12]}"
        self.lengths = list(source.shard_lengths)
        self.ends = list(itertools.accumulate(self.lengths))
        self._keys = [
            _sha256(json.dumps([_VERSION, source.shard_fingerprint(number), fingerprint, role]))
            for number in range(len(self.lengths))
        ]

    def path(self, number: int) -> str:
        """Returns the path of the features of a shard."""
        return f"{self.folder}/{self._keys[number]}.features"

    def infos(self) -> list[ShardInfo | None]:
        """Returns the description of each shard's features; None for missing or damaged ones."""
        store = store_of(self.folder)
        sizes = store.sizes(self.folder)
        numbers = range(len(self.lengths))
        found = [sizes.get(self.path(number).rpartition("/")[2]) for number in numbers]
        with ThreadPoolExecutor(REMOTE_READS) as pool:
            return list(pool.map(functools.partial(self._info, store), numbers, found))

    def missing(self) -> list[int]:
        """Returns the numbers of the shards whose features are missing or damaged."""
        return [number for number, info in enumerate(self.infos()) if info is None]

    def exists(self, number: int) -> bool:
        """Returns whether the features of a shard exist undamaged."""
        store = store_of(self.folder)
        try:
            size = store.stamp(self.path(number)).size
        except (OSError, NoSuchFileError):
            return False
        return self._info(store, number, size) is not None

    def claimed(self, number: int, refusal: str | None) -> AbstractContextManager[None]:
        """Holds the lock of a shard, see `locked`; a store has no locks."""
        if is_remote(self.folder):
            return nullcontext()
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        return locked(Path(self.folder, f".{self._keys[number]}.lock"), refusal)

    @contextmanager
    def writing(
        self, number: int, shape: tuple[int, ...]
    ) -> Iterator[Callable[[NDArray[np.float16], Iterable[LeftOut]], None]]:
        """Yields a function that takes the next features [B, N, C] of a shard and their notes.

        The features are stored when the block ends, unless it fails.
        """
        key, left_out, rows = self._keys[number], list[LeftOut](), itertools.count()
        with store_of(self.folder).writing(self.path(number)) as file:

            def write(features: NDArray[np.float16], notes: Iterable[LeftOut]) -> None:
                left_out.extend(notes)
                for row in features:
                    data = row.tobytes()
                    file.write(data + _hash(key, next(rows), data))

            yield write
            info = json.dumps({"shape": shape, "left_out": left_out}).encode()
            file.write(info + _hash(key, _INFO, info))
            file.write(len(info).to_bytes(_LENGTH_BYTES, "little"))

    def read(
        self, store: Store, number: int, row: int, shape: tuple[int, ...]
    ) -> NDArray[np.float16] | None:
        """Returns the features of a record, or None if they have changed.

        Args:
            store: the store of the folder; it keeps local files open between calls.
            number: number of the shard.
            row: number of the record in the shard.
            shape: shape of the features.

        Raises:
            OSError: if the file cannot be read.
            UsageError: if its store cannot be reached.
        """
        size = row_bytes(shape)
        stored = memoryview(store.read(self.path(number), row * size, size))
        data, digest = stored[:-_HASH_BYTES], stored[-_HASH_BYTES:]
        if len(stored) != size or _hash(self._keys[number], row, data) != digest:
            return None
        return np.frombuffer(data, np.float16).reshape(shape).copy()

    def remove(self, number: int) -> None:
        """Removes the features of a shard."""
        store_of(self.folder).remove(self.path(number))

    def _info(self, store: Store, number: int, size: int | None) -> ShardInfo | None:
        if not self.lengths[number]:
            return ShardInfo(shape=(), left_out={})  # a shard without records has no file
        if size is None or size < _LENGTH_BYTES:
            return None
        path, end = self.path(number), size - _LENGTH_BYTES
        try:
            length = int.from_bytes(store.read(path, end, _LENGTH_BYTES), "little")
            start = end - _HASH_BYTES - length
            data = store.read(path, start, end - start) if start >= 0 else b""
        except OSError:
            return None
        info = data[:length]
        if start < 0 or _hash(self._keys[number], _INFO, info) != data[length:]:
            return None
        stored = json.loads(info)  # its hash is right, so it is what was written
        shape = tuple(stored["shape"])
        if start != self.lengths[number] * row_bytes(shape):
            return None
        return ShardInfo(shape=shape, left_out={one["row"]: one for one in stored["left_out"]})


def row_bytes(shape: tuple[int, ...]) -> int:
    """Returns the number of bytes that the features of a record take with their hash."""
    return 2 * math.prod(shape) + _HASH_BYTES


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _hash(key: str, place: int | str, data: bytes | memoryview) -> bytes:
    """Returns a hash of data that belong to one place of one file."""
    digest = hashlib.sha256(f"{key}/{place}/".encode())
    digest.update(data)
    return digest.digest()[:_HASH_BYTES]
