"""WebDataset tar shards with random access through an index of member offsets.

    000017.png  000017.json            a picture and its fields
    000017.jpg  000017.txt             a picture and its caption
    000017.source.png  000017.target.png  000017.json      an edit

The index of a shard is made once by reading its headers and kept beside it, where that folder can
be written to; records are then read by position, so shuffling and resuming cost nothing.
"""

import dataclasses
import glob
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip3o.core.errors import UsageError

PICTURE_SUFFIXES = ("png", "jpg", "jpeg", "webp")
_Member = tuple[str, int, int]  # file suffix inside the record, offset, size
_Entry = tuple[str, list[_Member]]  # key, members


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
        paths = sorted(glob.glob(config.path))
        if not paths:
            raise UsageError(f"no shard matches {config.path}")
        self._entries: list[tuple[int, _Entry]] = []
        for shard, path in enumerate(paths):
            self._entries += [(shard, entry) for entry in _index(Path(path))]
        self._paths = paths
        self._files: dict[int, int] = {}
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, position: int) -> tuple[str, Mapping[str, bytes], Mapping[str, Any]]:
        """Returns key, pictures by role, and fields of one record.

        Args:
            position: 0 to len - 1.

        Raises:
            ValueError: if the record's JSON or text cannot be read.
        """
        shard, (key, members) = self._entries[position]
        descriptor = self._open(shard)
        files: dict[str, bytes] = {}
        fields: dict[str, Any] = {}
        for suffix, offset, size in members:
            data = os.pread(descriptor, size, offset)
            if len(data) != size:
                raise ValueError(f"{self._paths[shard]} ends inside record {key}")
            add_member(suffix, data, files, fields)
        return key, files, fields

    def _open(self, shard: int) -> int:
        if self._process != os.getpid():  # a forked worker must not share file positions
            self._files, self._process = {}, os.getpid()
        if shard not in self._files:
            self._files[shard] = os.open(self._paths[shard], os.O_RDONLY)
        return self._files[shard]


def add_member(
    suffix: str, data: bytes, files: dict[str, bytes], fields: dict[str, Any]
) -> None:
    """Files a record's member under its role.

    Args:
        suffix: what follows the key in the member's name ("png", "source.png", "json", "txt").
        data: its bytes.
        files: pictures by role; added to.
        fields: everything else; added to.

    Raises:
        ValueError: if JSON or text cannot be read.
    """
    role, _, kind = suffix.rpartition(".")
    if kind in PICTURE_SUFFIXES:
        files[role or "image"] = data
    elif kind == "json":
        loaded = json.loads(data)
        if not isinstance(loaded, dict):
            raise ValueError("the record's JSON is no object")
        fields.update(loaded)
    elif kind == "txt":
        fields["caption"] = data.decode("utf-8").strip()


def _index(path: Path) -> list[_Entry]:
    side_car = path.with_name(path.name + ".index.json")
    stamp = [path.stat().st_size, path.stat().st_mtime_ns]
    try:
        stored = json.loads(side_car.read_text(encoding="utf-8"))
        if stored["stamp"] == stamp:
            return [(key, [tuple(m) for m in members]) for key, members in stored["entries"]]
    except (OSError, ValueError, KeyError):
        pass  # no index yet, or one of another shard: make it
    entries = _scan(path)
    try:
        scratch = side_car.with_name(f".{side_car.name}.{os.getpid()}")
        scratch.write_text(json.dumps({"stamp": stamp, "entries": entries}), encoding="utf-8")
        os.replace(scratch, side_car)
    except OSError:
        pass  # a read-only folder: the index lives in memory only
    return entries


def _scan(path: Path) -> list[_Entry]:
    entries: list[_Entry] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if not entries or entries[-1][0] != key:
                    entries.append((key, []))
                entries[-1][1].append((suffix.lower(), member.offset_data, member.size))
                if member.offset_data + member.size > path.stat().st_size:
                    raise tarfile.ReadError("unexpected end of data")
    except (tarfile.TarError, OSError) as error:
        raise UsageError(f"shard {path} is damaged: {error}; fetch or write it again") from error
    return entries
