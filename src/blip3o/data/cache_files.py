"""The files of a feature cache, and the description that lies beside them.

    NAME.ROLE.f16               float16 [records, N, C]
    NAME.ROLE.json              which encoder and which data it is of (`CacheInfo`)
    NAME.ROLE.done              a byte for each chunk of rows: 1 if they are there
    NAME.ROLE.sums              a hash for each row
    NAME.ROLE.left_out.jsonl    records whose image cannot be read, with reasons

Features of other data under the same name lie beside them: NAME.ROLE.XXXXXXXXXXXX.f16 and so on,
named by the data.
"""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HASHES = "sha256-16-placed"
"""What `hash_row` makes."""
HASH_BYTES = 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CacheInfo:
    """The description of a cache.

    Args:
        fingerprint: what computed it: encoder, weights, preprocessing.
        data: fingerprint of the records.
        shape: of the array.
        chunk: rows that are computed and marked at once.
        hashes: how rows are hashed; None in a cache of an older version, which has no hashes.
    """

    fingerprint: str
    data: str
    shape: tuple[int, ...]
    chunk: int
    hashes: str | None = None

    @property
    def num_chunks(self) -> int:
        """Chunks of rows; the last one may be short."""
        return -(-self.shape[0] // self.chunk)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return 2 * math.prod(self.shape[1:])

    def positions(self, number: int) -> range:
        """Returns the rows of a chunk."""
        return range(number * self.chunk, min((number + 1) * self.chunk, self.shape[0]))


class CacheFiles:
    """The files of one source and role.

    Args:
        array: the file of the features; the others have its name with other endings.
    """

    def __init__(self, array: Path) -> None:
        self.array = array
        self.info = array.with_suffix(".json")
        self.marks = array.with_suffix(".done")
        self.sums = array.with_suffix(".sums")
        self.left_out = array.with_suffix(".left_out.jsonl")

    def sizes(self, info: CacheInfo) -> dict[Path, int]:
        """Returns the bytes of each file of a cache that is not cut short."""
        sizes = {self.array: info.shape[0] * info.row_bytes, self.marks: info.num_chunks}
        if info.hashes is not None:
            sizes[self.sums] = info.shape[0] * HASH_BYTES
        return sizes

    def told(self) -> CacheInfo | None:
        """Returns the stored description; None if there is none, or it cannot be read."""
        try:
            stored = json.loads(self.info.read_text(encoding="utf-8"))
            return CacheInfo(
                fingerprint=stored["fingerprint"],
                data=stored["data"],
                shape=tuple(int(size) for size in stored["shape"]),
                chunk=stored["chunk"],
                hashes=stored.get("hashes"),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def read_info(self) -> CacheInfo | None:
        """Returns the stored description if every file has the size that it says, else None."""
        info = self.told()
        try:
            is_whole = (
                info is not None
                and info.hashes in (None, HASHES)
                and all(file.stat().st_size == size for file, size in self.sizes(info).items())
            )
        except (OSError, ValueError, TypeError, ZeroDivisionError):
            return None
        return info if is_whole else None

    def done(self, info: CacheInfo) -> NDArray[np.uint8]:
        """Returns a byte for each chunk, 1 if its rows are there."""
        return np.fromfile(self.marks, dtype=np.uint8, count=info.num_chunks)

    def read_left_out(self) -> dict[int, dict[str, Any]]:
        """Returns `key` and `reason` of the records that were left out, by position."""
        try:
            lines = self.left_out.read_text(encoding="utf-8").splitlines()
            notes = [json.loads(line) for line in lines]
            return {int(note["position"]): note for note in notes}
        except (OSError, ValueError, KeyError, TypeError):  # none, or of an older version
            return {}


def find_files(folder: Path, source: str, role: str, data: str | None = None) -> CacheFiles:
    """Returns the files of a source and role; they need not exist.

    The plain names belong to the data that came first. Other data have names of their own, so that
    no run replaces the features of another one.

    Args:
        folder: of the cache.
        source: name of the data source.
        role: which image of its records.
        data: fingerprint of the source; None for whatever has the plain names.
    """
    plain = CacheFiles(folder / f"{source}.{role}.f16")
    if data is None:
        return plain
    own = CacheFiles(folder / f"{source}.{role}.{data[:12]}.f16")
    if own.info.exists():
        return own
    told = plain.told()
    return plain if told is None or told.data == data else own


def hash_row(row: NDArray[np.float16], info: CacheInfo, position: int) -> bytes:
    """Returns the hash of the features of one record; those of another place have another one.

    Args:
        row: contiguous.
        info: what the cache is of.
        position: of the record.
    """
    digest = hashlib.sha256(f"{info.fingerprint}/{info.data}/{position}/".encode())
    digest.update(row.data)
    return digest.digest()[:HASH_BYTES]
