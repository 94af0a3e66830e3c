"""WebDataset tar shards with random access.

    000017.png  000017.json            a picture and its fields
    000017.jpg  000017.txt             a picture and its caption
    000017.source.png  000017.target.png  000017.json      an edit

Records are read by position, so shuffling and resuming cost nothing; from a disk, an HTTP server,
S3 or the hub alike.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from blip3o.core.config import LocalPath
from blip3o.core.errors import UsageError
from blip3o.data.sources.files import expand, files_of, is_remote
from blip3o.data.sources.shards import PICTURE_SUFFIXES, index_shards
from blip3o.data.sources.tar import BLOCK, stored_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class WebDatasetConfig:
    """Tar shards of one data set.

    Args:
        path: a shard, or a pattern such as "data/scenes-*.tar" or "https://host/{000..099}.tar";
            shards are taken in name order.
        name: short name for logs, quarantine and feature caches.
        salvage: take the whole records of a damaged shard, with a warning, instead of refusing it.
    """

    kind: str = "webdataset"
    path: LocalPath
    name: str
    salvage: bool = False

    def build(self, jobs: int = 1) -> "WebDatasetSource":
        """Returns the opened source.

        Args:
            jobs: processes that index shards not indexed before.

        Raises:
            UsageError: if no shard matches, or one cannot be read or is damaged.
        """
        return WebDatasetSource(self, jobs)


class WebDatasetSource:
    """Records of tar shards by position.

    Args:
        config: which shards.
        jobs: processes that index shards not indexed before.
    """

    passed_over: Mapping[str, int] = {}

    def __init__(self, config: WebDatasetConfig, jobs: int = 1) -> None:
        self.name = config.name
        self.paths = expand(config.path)
        if not self.paths or any(os.path.isdir(path) for path in self.paths):
            raise UsageError(
                f"no shard matches {config.path}; give a tar file or a pattern such as data/*.tar"
            )
        self.is_remote = is_remote(self.paths[0])
        self._files = files_of(self.paths[0])
        self.shards = index_shards(
            self.paths, salvage=config.salvage, jobs=jobs, what=f"shards of {self.name}"
        )
        self.shard_lengths: Sequence[int] = [len(shard) for shard in self.shards]
        self._ends = np.cumsum(self.shard_lengths)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, position: int) -> tuple[str, Mapping[str, bytes], Mapping[str, Any]]:
        """Returns key, pictures by role, and fields of one record.

        Args:
            position: 0 to len - 1.

        Raises:
            ValueError: if the record's JSON or text cannot be read, or the shard does not hold
                the record that its index names.
            OSError: if the shard cannot be read.
            UsageError: if a remote shard cannot be reached.
        """
        number, record = self._place(position)
        shard, path = self.shards[number], self.paths[number]
        key = shard.key(record)
        owned = range(int(shard.starts[record]), int(shard.starts[record + 1]))
        # One read for all members with their headers: they lie next to each other.
        start = int(shard.offsets[owned[0]]) - BLOCK
        end = int(shard.offsets[owned[-1]] + shard.sizes[owned[-1]])
        data = self._files.read(path, start, end - start)
        if len(data) != end - start:
            raise ValueError(f"{path} ends inside record {key}")
        files: dict[str, bytes] = {}
        fields: dict[str, Any] = {}
        for member in owned:
            at = int(shard.offsets[member]) - start
            size = int(shard.sizes[member])
            suffix = shard.suffixes[shard.kinds[member]]
            if not _is_header_of(data[at - BLOCK : at], key, suffix, size):
                raise ValueError(
                    f"{path} does not hold record {key} where its index says: it was changed or "
                    "damaged since; fetch it again or delete its index"
                )
            _add_member(suffix, data[at : at + size], files, fields)
        return key, files, fields

    def locate(self, position: int) -> str:
        """Returns the shard that holds a record.

        Args:
            position: 0 to len - 1.
        """
        return self.paths[self._place(position)[0]]

    def fingerprint(self) -> str:
        """Returns a hash of the shards' names and of every record's name, place and size."""
        digest = hashlib.sha256()
        for path, shard in zip(self.paths, self.shards, strict=True):
            digest.update(path.rpartition("/")[2].encode())
            for array in (shard.names, shard.name_ends, shard.starts, shard.kinds):
                digest.update(array.tobytes())
            digest.update(shard.offsets.tobytes() + shard.sizes.tobytes())
        return digest.hexdigest()[:32]

    def _place(self, position: int) -> tuple[int, int]:
        """Returns the number of a record's shard, and its own number there."""
        number = int(np.searchsorted(self._ends, position, side="right"))
        return number, position - int(self._ends[number]) + self.shard_lengths[number]


def _is_header_of(block: bytes, key: str, suffix: str, size: int) -> bool:
    """Returns whether a header may well be that of a member; long names stand elsewhere."""
    if stored_size(block) != size:
        return False
    name = block[:100].partition(b"\0")[0]
    stem = key.rpartition("/")[2].encode()
    is_long = len(name) == 100 or not stem.isascii()
    return is_long or name.rpartition(b"/")[2].lower() == stem.lower() + b"." + suffix.encode()


def _add_member(suffix: str, data: bytes, files: dict[str, bytes], fields: dict[str, Any]) -> None:
    role, _, kind = suffix.rpartition(".")
    if kind in PICTURE_SUFFIXES:
        files[role or "image"] = data
    elif kind == "json":
        try:
            loaded = json.loads(data)
        except RecursionError as error:  # a few kilobytes of "[[[[" are enough
            raise ValueError("the record's JSON is nested too deeply") from error
        if not isinstance(loaded, dict):
            raise ValueError("the record's JSON is no object")
        fields.update(loaded)
    else:
        fields["caption"] = data.decode("utf-8-sig").strip()
