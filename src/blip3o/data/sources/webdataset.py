"""WebDataset tar shards with random access.

    000017.png  000017.json            a picture and its fields
    000017.jpg  000017.txt             a picture and its caption
    000017.source.png  000017.target.png  000017.json      an edit

Records are read by position, so shuffling and resuming cost nothing.
"""

import collections
import dataclasses
import glob
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from blip3o.core.errors import UsageError
from blip3o.core.log import progress
from blip3o.data.sources.shards import PICTURE_SUFFIXES, load_index, make_index

_MAX_OPEN_SHARDS = 256
"""Most shards held open at once; a process may often open no more than 1024 files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WebDatasetConfig:
    """Tar shards of one data set.

    Args:
        path: a shard, or a pattern such as "data/scenes-*.tar"; shards are taken in name order.
        name: short name for logs, quarantine and feature caches.
    """

    kind: str = "webdataset"
    path: str
    name: str

    def build(self) -> "WebDatasetSource":
        """Returns the opened source.

        Raises:
            UsageError: if no shard matches or one is damaged.
        """
        return WebDatasetSource(self)


class WebDatasetSource:
    """Records of tar shards by position.

    Args:
        config: which shards.
    """

    def __init__(self, config: WebDatasetConfig) -> None:
        self.name = config.name
        self._paths = [Path(path) for path in sorted(glob.glob(config.path))]
        if not self._paths or any(path.is_dir() for path in self._paths):
            raise UsageError(
                f"no shard matches {config.path}; give a tar file or a pattern such as data/*.tar"
            )
        stored = {path: load_index(path) for path in self._paths}
        missing = [path for path, index in stored.items() if index is None]
        if missing:
            for path in progress(missing, what=f"indexing shards of {self.name}"):
                stored[path] = make_index(path)
        self._shards = [index for index in stored.values() if index is not None]
        self._ends = np.cumsum([len(shard) for shard in self._shards])
        self._open_shards: collections.OrderedDict[int, int] = collections.OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, position: int) -> tuple[str, Mapping[str, bytes], Mapping[str, Any]]:
        """Returns key, pictures by role, and fields of one record.

        Args:
            position: 0 to len - 1.

        Raises:
            ValueError: if the record's JSON or text cannot be read.
            OSError: if the shard cannot be read.
        """
        number = int(np.searchsorted(self._ends, position, side="right"))
        shard = self._shards[number]
        record = position - int(self._ends[number]) + len(shard)
        key = bytes(shard.keys[record]).decode()
        descriptor = self._descriptor(number)
        files: dict[str, bytes] = {}
        fields: dict[str, Any] = {}
        for member in range(int(shard.starts[record]), int(shard.starts[record + 1])):
            size = int(shard.sizes[member])
            data = os.pread(descriptor, size, int(shard.offsets[member]))
            if len(data) != size:
                raise ValueError(f"{self._paths[number]} ends inside record {key}")
            _add_member(shard.suffixes[shard.kinds[member]], data, files, fields)
        return key, files, fields

    def fingerprint(self) -> str:
        """Returns a hash of the shards' names and of every record's name, place and size."""
        digest = hashlib.sha256()
        for path, shard in zip(self._paths, self._shards, strict=True):
            digest.update(path.name.encode())
            for array in (shard.keys, shard.starts, shard.kinds, shard.offsets, shard.sizes):
                digest.update(array.tobytes())
        return digest.hexdigest()[:32]

    def _descriptor(self, number: int) -> int:
        # Positional reads need no lock and share well: a forked worker goes on with these files.
        found = self._open_shards.get(number)
        if found is None:
            if len(self._open_shards) == _MAX_OPEN_SHARDS:
                os.close(self._open_shards.popitem(last=False)[1])
            found = self._open_shards[number] = os.open(self._paths[number], os.O_RDONLY)
        self._open_shards.move_to_end(number)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open_shards": collections.OrderedDict()}

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open_shards", {}).values():
            os.close(descriptor)


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
        fields["caption"] = data.decode("utf-8").strip()
