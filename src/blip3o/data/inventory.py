"""Inventories of data sources, so that a resumed run can report changed data."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from blip3o.data.sources import Source
from blip3o.data.sources.plain_files import file_stamp

_MOST_FILES = 200_000
"""With more files, only the fingerprint is kept."""
_SHOWN = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """The records and files of a source at one time.

    Args:
        fingerprint: fingerprint of the records.
        records: number of records.
        files: size and modification time by path; None for remote files or too many of them.
    """

    fingerprint: str
    records: int
    files: dict[str, str] | None

    @classmethod
    def take(cls, source: Source) -> "Inventory":
        """Returns the inventory of a source."""
        files = {
            path: file_stamp(path) for path in itertools.islice(source.files(), _MOST_FILES + 1)
        }
        is_known = 0 < len(files) <= _MOST_FILES
        return cls(
            fingerprint=source.fingerprint(),
            records=len(source),
            files=files if is_known else None,
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Inventory":
        """Returns the inventory that `dataclasses.asdict` converted to plain data.

        Raises:
            ValueError: if the data are not an inventory.
        """
        try:
            files = data["files"]
            return cls(
                fingerprint=str(data["fingerprint"]),
                records=int(data["records"]),
                files=None if files is None else {str(k): str(v) for k, v in files.items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("the data are not an inventory") from error

    def changes_since(self, before: "Inventory") -> list[str]:
        """Returns short descriptions of all changes; empty if there are none."""
        changes: list[str] = []
        if before.records != self.records:
            changes.append(f"{before.records} records are {self.records} now")
        if self.files is not None and before.files is not None:
            now, then = self.files, before.files
            changes += _named("added", [path for path in now if path not in then])
            changes += _named("removed", [path for path in then if path not in now])
            changes += _named("edited", [p for p in now if p in then and now[p] != then[p]])
        if not changes and before.fingerprint != self.fingerprint:
            changes.append("the records have changed")
        return changes


def _named(what: str, paths: list[str]) -> list[str]:
    if not paths:
        return []
    names = ", ".join(sorted(paths)[:_SHOWN]) + (", ..." if len(paths) > _SHOWN else "")
    return [f"{len(paths)} {'file' if len(paths) == 1 else 'files'} {what} ({names})"]
