"""The files of a feature cache.

    NAME.ROLE.f16               features, float16 [records, N, C]
    NAME.ROLE.json              encoder and data of the features (`CacheInfo`)
    NAME.ROLE.done              one byte per chunk of rows: 1 if the chunk is finished
    NAME.ROLE.sums              one hash per row
    NAME.ROLE.left_out.jsonl    records whose image is unreadable, with reasons

Features of other data under the same name have a hash of these data in their file names:
NAME.ROLE.XXXXXXXXXXXX.f16 and so on.
"""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

HASHES = "sha256-16-placed"
"""Name of the hash function `hash_row`."""
HASH_BYTES = 16


class LeftOut(TypedDict):
    """A record whose image is unreadable."""

    key: str
    position: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CacheInfo:
    """The description of a cache.

    Args:
        fingerprint: identifies encoder, weights and preprocessing.
        data: fingerprint of the records.
        shape: shape of the array.
        chunk: number of rows that are computed and marked together.
        hashes: name of the hash function; None in a cache of an older version without hashes.
    """

    fingerprint: str
    data: str
    shape: tuple[int, ...]
    chunk: int
    hashes: str | None = None

    @property
    def num_chunks(self) -> int:
        """Number of chunks; the last one may be short."""
        return -(-self.shape[0] // self.chunk)

    @property
    def row_bytes(self) -> int:
        """Number of bytes in a row."""
        return 2 * math.prod(self.shape[1:])

    def positions(self, number: int) -> range:
        """Returns the row numbers of a chunk."""
        return range(number * self.chunk, min((number + 1) * self.chunk, self.shape[0]))


class CacheFiles:
    """The files of one source and role.

    Args:
        array: file of the features; the other files have the same name with other endings.
    """

    def __init__(self, array: Path) -> None:
        self.array = array
        self.info = array.with_suffix(".json")
        self.marks = array.with_suffix(".done")
        self.sums = array.with_suffix(".sums")
        self.left_out = array.with_suffix(".left_out.jsonl")

    def sizes(self, info: CacheInfo) -> dict[Path, int]:
        """Returns the expected number of bytes of each file."""
        sizes = {self.array: info.shape[0] * info.row_bytes, self.marks: info.num_chunks}
        if info.hashes is not None:
            sizes[self.sums] = info.shape[0] * HASH_BYTES
        return sizes

    def stored_info(self) -> CacheInfo | None:
        """Returns the stored description; None if it is missing or unreadable."""
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
        """Returns the stored description if every file has the expected size, else None."""
        info = self.stored_info()
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
        """Returns one byte per chunk, 1 if the chunk is finished."""
        return np.fromfile(self.marks, dtype=np.uint8, count=info.num_chunks)

    def read_left_out(self) -> dict[int, LeftOut]:
        """Returns the records that were left out, by position."""
        try:
            lines = self.left_out.read_text(encoding="utf-8").splitlines()
            notes = [json.loads(line) for line in lines]
            return {
                int(note["position"]): LeftOut(
                    key=str(note.get("key", "?")),
                    position=int(note["position"]),
                    reason=str(note.get("reason", "the image cannot be read")),
                )
                for note in notes
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing or damaged
            return {}


def find_files(folder: Path, source: str, role: str, data: str | None = None) -> CacheFiles:
    """Returns the files of a source and role; they need not exist.

    The first data set to use a source name gets the plain file names. Other data get names with
    their hash, so no run replaces the features of another run. `data` is the fingerprint of the
    source; None gives the plain names.
    """
    plain = CacheFiles(folder / f"{source}.{role}.f16")
    if data is None:
        return plain
    own = CacheFiles(folder / f"{source}.{role}.{data[:12]}.f16")
    if own.info.exists():
        return own
    stored = plain.stored_info()
    return plain if stored is None or stored.data == data else own


def hash_row(row: NDArray[np.float16], info: CacheInfo, position: int) -> bytes:
    """Returns a hash of the features (contiguous), encoder, data and position of a record."""
    digest = hashlib.sha256(f"{info.fingerprint}/{info.data}/{position}/".encode())
    digest.update(row.data)
    return digest.digest()[:HASH_BYTES]
