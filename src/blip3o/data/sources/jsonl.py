r"""JSON lines (or one JSON list) with pictures as files beside it, on a disk or remote.

{"image": "a.png", "caption": "a red cat"}
{"image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, ...]}
{"source": "a.png", "target": "b.png", "instruction": "make the cat blue"}
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3o.core.config import LocalPath
from blip3o.core.errors import UsageError
from blip3o.core.files import atomic_file
from blip3o.core.log import say
from blip3o.data.sources.files import files_of, is_remote, private_path, read_file

_ROLES = ("image", "source", "target")
_FETCH_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonlConfig:
    """One file of records.

    Args:
        path: the file or its address; picture paths in it are relative to its folder. A name
            ending in ".json" is one list, held in memory; anything else is read line by line. A
            remote file is copied to the user's cache, its pictures are not.
        name: short name for logs, quarantine and feature caches.
    """

    kind: str = "jsonl"
    path: LocalPath
    name: str

    def build(self) -> "JsonlSource":
        """Returns the opened source.

        Raises:
            UsageError: if the file cannot be read or is no list of records.
        """
        return JsonlSource(self)


class JsonlSource:
    """Records of a JSON or JSON lines file by position; of lines only the places are kept.

    Args:
        config: which file.
    """

    def __init__(self, config: JsonlConfig) -> None:
        self.name = config.name
        self.is_remote = is_remote(config.path)
        self._path = _local_copy(config.path) if self.is_remote else Path(config.path)
        self._base = config.path.rpartition("/")[0] if self.is_remote else str(self._path.parent)
        self._rows: list[Any] | None = None
        self._places = np.zeros((0, 2), dtype=np.int64)
        try:
            if self._path.suffix == ".json":
                self._rows = self._read_list()
            else:
                self._places = self._find_lines()
        except FileNotFoundError as error:
            raise UsageError(f"no such data file: {self._path}") from error
        except OSError as error:
            raise UsageError(f"cannot read {self._path}: {error.strerror}") from error
        self.shard_lengths = [len(self)]

    def __len__(self) -> int:
        return len(self._places if self._rows is None else self._rows)

    def read(self, position: int) -> tuple[str, Mapping[str, bytes], Mapping[str, Any]]:
        """Returns key, pictures by role, and fields of one record.

        Args:
            position: 0 to len - 1.

        Raises:
            ValueError: if the line is no JSON object.
            OSError: if one of its pictures cannot be read.
            UsageError: if a remote picture cannot be reached.
        """
        row = self._read_line(position) if self._rows is None else self._rows[position]
        if not isinstance(row, dict):
            raise ValueError(f"record {position} of {self._path} is no JSON object")
        fields = dict(row)
        files = {
            role: self._read_picture(fields.pop(role))
            for role in _ROLES
            if isinstance(fields.get(role), str)
        }
        return str(fields.get("id", position)), files, fields

    def fingerprint(self) -> str:
        """Returns a hash of the file; pictures changed under the same name are not noticed."""
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]

    def _read_picture(self, path: str) -> bytes:
        if not self.is_remote:
            return Path(self._base, path).read_bytes()
        if is_remote(path) or path.startswith("/"):
            raise ValueError(f"the picture {path!r} has no path relative to its list")
        return read_file(f"{self._base}/{path}")

    def _read_list(self) -> list[Any]:
        try:
            rows = json.loads(self._path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{self._path} is no JSON: {error}") from error
        if not isinstance(rows, list):
            raise UsageError(
                f"{self._path} must hold a JSON list of records; name it .jsonl if each line is one"
            )
        return rows

    def _find_lines(self) -> NDArray[np.int64]:
        """Returns offset and length of every line that is not blank [lines, 2]."""
        places = []
        offset = 0
        with self._path.open("rb") as lines:
            for line in lines:
                if line.strip():
                    places.append((offset, len(line)))
                offset += len(line)
        return np.array(places, dtype=np.int64).reshape(-1, 2)

    def _read_line(self, position: int) -> Any:  # noqa: ANN401
        offset, length = self._places[position].tolist()
        with self._path.open("rb", buffering=0) as file:
            file.seek(offset)
            try:
                return json.loads(file.read(length))
            except RecursionError as error:
                raise ValueError(f"record {position} is nested too deeply") from error


def _local_copy(path: str) -> Path:
    """Returns the copy of a remote list, fetched anew when the remote one has changed."""
    stamp = files_of(path).stamp(path)
    suffix = ".json" if path.endswith(".json") else ".jsonl"
    tag = hashlib.sha256(f"{stamp.size}/{stamp.tag}".encode()).hexdigest()[:8]
    copy = private_path(path, f".{tag}{suffix}")
    if not copy.exists():
        say(f"fetching {path} ({stamp.size / 1e6:.1f} MB)")
        copy.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(copy, is_shared=True) as scratch, scratch.open("wb") as file:
            for offset in range(0, stamp.size, _FETCH_BYTES):
                size = min(_FETCH_BYTES, stamp.size - offset)
                file.write(files_of(path).read(path, offset, size))
    return copy
