"""Which records and files a data source had: a run that resumes says what has changed since."""

import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from blip3o.data.sources import Source
from blip3o.data.sources.files import is_remote

_MOST_FILES = 200_000
"""Of more files than that only the fingerprint is kept."""
_MOST_LIST_BYTES = 1 << 27
_ROLES = ("image", "images", "source", "target")
_SHOWN = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What a source held.

    Args:
        fingerprint: of its records.
        records: how many.
        files: size and time of change by path; None if there are too many, or they are remote.
    """

    fingerprint: str
    records: int
    files: dict[str, str] | None

    @classmethod
    def take(cls, config: Any, source: Source) -> "Inventory":  # noqa: ANN401  (a source's config)
        """Returns what a source holds now.

        Args:
            config: the source's.
            source: the opened source.
        """
        paths = [] if is_remote(config.path) else _paths(config.path, source)
        files = {path: _stamp(path) for path in itertools.islice(paths, _MOST_FILES + 1)}
        is_known = 0 < len(files) <= _MOST_FILES
        return cls(
            fingerprint=source.fingerprint(),
            records=len(source),
            files=files if is_known else None,
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Inventory":
        """Returns what `dataclasses.asdict` made plain data of.

        Args:
            data: the plain data.

        Raises:
            ValueError: if it is something else.
        """
        try:
            files = data["files"]
            return cls(
                fingerprint=str(data["fingerprint"]),
                records=int(data["records"]),
                files=None if files is None else {str(k): str(v) for k, v in files.items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("this is no inventory") from error

    def changes_since(self, before: "Inventory") -> list[str]:
        """Returns what is different, each as a few words; empty if nothing is.

        Args:
            before: the same source at another time.
        """
        said: list[str] = []
        if before.records != self.records:
            said.append(f"{before.records} records are {self.records} now")
        if self.files is not None and before.files is not None:
            now, then = self.files, before.files
            said += _named("added", [path for path in now if path not in then])
            said += _named("removed", [path for path in then if path not in now])
            said += _named("edited", [p for p in now if p in then and now[p] != then[p]])
        if not said and before.fingerprint != self.fingerprint:
            said.append("the records are others")
        return said


def _named(what: str, paths: list[str]) -> list[str]:
    if not paths:
        return []
    names = ", ".join(sorted(paths)[:_SHOWN]) + (", ..." if len(paths) > _SHOWN else "")
    return [f"{len(paths)} {'file' if len(paths) == 1 else 'files'} {what} ({names})"]


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return "missing"
    return f"{status.st_size}/{status.st_mtime_ns}"


def _paths(path: str, source: Source) -> Iterable[str]:
    """Yields the local files that a source reads."""
    if os.path.isdir(path):
        return _walk(path, set())
    shards = getattr(source, "paths", None)
    return [path, *_listed(path)] if shards is None else shards


def _walk(folder: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    """Yields the files below a folder that are not hidden, through links but never in a circle."""
    try:
        status = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:  # the source itself says what it cannot read
        return
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry.path):
            yield from _walk(entry.path, seen)
        else:
            yield entry.path


def _listed(path: str) -> list[str]:
    """Returns the pictures that a JSON list names, as far as it can be read with little effort."""
    file = Path(path)
    try:
        if file.stat().st_size > _MOST_LIST_BYTES:
            return []
        content = file.read_bytes()
        rows = json.loads(content) if file.suffix == ".json" else content.splitlines()
    except (OSError, ValueError, RecursionError):
        return []
    found: dict[str, None] = {}
    for row in rows if isinstance(rows, list) else ():
        try:
            record = json.loads(row) if isinstance(row, bytes) else row
        except (ValueError, RecursionError):
            continue
        for role in _ROLES if isinstance(record, dict) else ():
            names = record.get(role)
            for name in names if isinstance(names, list) else [names]:
                if isinstance(name, str) and "\0" not in name:
                    found[os.path.join(file.parent, name)] = None
    return list(found)
