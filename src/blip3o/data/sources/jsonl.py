"""JSON lines (or one JSON list) with pictures as files beside it.

    {"image": "a.png", "caption": "a red cat"}
    {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, ...]}
    {"source": "a.png", "target": "b.png", "instruction": "make the cat blue"}
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip3o.core.errors import UsageError

_ROLES = ("image", "source", "target")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonlConfig:
    """One file of records.

    Args:
        path: the file, .jsonl or .json; picture paths in it are relative to its folder.
        name: short name for logs, quarantine and feature caches.
    """

    kind: str = "jsonl"
    path: str
    name: str

    def build(self) -> "JsonlSource":
        """Returns the opened source.

        Raises:
            UsageError: if the file is missing or its frame is damaged.
        """
        return JsonlSource(self)


class JsonlSource:
    """Records of a JSON or JSON lines file by position; only line offsets are kept in memory.

    Args:
        config: which file.
    """

    def __init__(self, config: JsonlConfig) -> None:
        self.name = config.name
        self._path = Path(config.path)
        try:
            self._rows = self._read_list() if self._path.suffix == ".json" else None
            self._offsets = [] if self._rows is not None else self._line_offsets()
        except FileNotFoundError as error:
            raise UsageError(f"no such data file: {self._path}") from error

    def __len__(self) -> int:
        return len(self._offsets if self._rows is None else self._rows)

    def read(self, position: int) -> tuple[str, Mapping[str, bytes], Mapping[str, Any]]:
        """Returns key, pictures by role, and fields of one record.

        Args:
            position: 0 to len - 1.

        Raises:
            ValueError: if the line is no JSON object.
            OSError: if one of its pictures cannot be read.
        """
        row = self._rows[position] if self._rows is not None else self._read_line(position)
        if not isinstance(row, dict):
            raise ValueError(f"record {position} of {self._path} is no JSON object")
        fields = dict(row)
        files = {
            role: (self._path.parent / fields.pop(role)).read_bytes()
            for role in _ROLES
            if isinstance(fields.get(role), str)
        }
        return str(fields.get("id", position)), files, fields

    def _read_list(self) -> list[Any]:
        try:
            rows = json.loads(self._path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"{self._path} is no JSON: {error}") from error
        if not isinstance(rows, list):
            raise UsageError(f"{self._path} must hold a JSON list of records")
        return rows

    def _line_offsets(self) -> list[int]:
        offsets, offset = [], 0
        with self._path.open("rb") as lines:
            for line in lines:
                if line.strip():
                    offsets.append(offset)
                offset += len(line)
        return offsets

    def _read_line(self, position: int) -> Any:  # noqa: ANN401
        with self._path.open("rb") as file:
            file.seek(self._offsets[position])
            return json.loads(file.readline())
