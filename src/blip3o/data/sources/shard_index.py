"""The index of one tar shard: the places of all records' members, as a few flat arrays."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3o.data.sources.local_files import FileStamp

_VERSION = 4
"""Raise it when the contents of an index change, or the rules that form records from members."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardIndex:
    """Members of the records of one shard; record r owns members starts[r] to starts[r + 1] - 1.

    Args:
        names: the keys of all records in UTF-8, concatenated [bytes].
        name_ends: end of each key in `names` [records].
        starts: number of each record's first member [records + 1].
        suffixes: all different suffixes ("png", "source.png", "json").
        kinds: suffix of each member, as an index into `suffixes` [members].
        offsets: offset of each member's bytes; -1 for an unreadable member [members].
        sizes: number of bytes of each member; for an unreadable member, an index into `problems`
            [members].
        checks: checksums of the headers in front of the members' bytes [members].
        problems: reasons why members are unreadable.
        damage: descriptions of damaged places; the index then holds the intact records.
        passed_over: number of members that belong to no record, by reason.
    """

    names: NDArray[np.uint8]
    name_ends: NDArray[np.int64]
    starts: NDArray[np.int64]
    suffixes: tuple[str, ...]
    kinds: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    checks: NDArray[np.uint32]
    problems: tuple[str, ...] = ()
    damage: tuple[str, ...] = ()
    passed_over: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.name_ends)

    def key(self, record: int) -> str:
        """Returns the name of a record; bytes that are not UTF-8 become backslash escapes."""
        start = int(self.name_ends[record - 1]) if record else 0
        name = self.names[start : int(self.name_ends[record])].tobytes()
        return name.decode(errors="backslashreplace")


_TEXTS = ("suffixes", "problems", "damage")


def pack(index: ShardIndex, stamp: FileStamp) -> dict[str, Any]:
    """Returns an index and the size and version of its shard as arrays to store."""
    arrays = {f.name: getattr(index, f.name) for f in dataclasses.fields(index)}
    texts = {name: np.array(arrays[name], dtype=np.str_) for name in _TEXTS}
    texts["passed_over"] = np.array(json.dumps(dict(index.passed_over)))
    facts = np.array([str(_VERSION), str(stamp.size), stamp.tag])
    return {**arrays, **texts, "stamp": facts}


def unpack(stored: Mapping[str, Any], stamp: FileStamp | None) -> ShardIndex | None:
    """Returns a stored index; None if it is of another file or version, or inconsistent.

    Without a stamp, an index of any file is accepted.

    Raises:
        Exception: of many kinds, if the arrays are not those of an index.
    """
    version, size, tag = stored["stamp"].tolist()
    if version != str(_VERSION):
        return None
    if stamp and (size != str(stamp.size) or (stamp.tag and tag != stamp.tag)):
        return None
    names = [field.name for field in dataclasses.fields(ShardIndex)]
    arrays: dict[str, Any] = {name: stored[name] for name in names}
    for name in _TEXTS:
        arrays[name] = tuple(arrays[name].tolist())
    arrays["passed_over"] = json.loads(arrays["passed_over"].item())
    index = ShardIndex(**arrays)
    return index if _is_sound(index) else None


def _is_sound(index: ShardIndex) -> bool:
    """Returns whether the arrays are consistent, so every access finds a member or fails."""
    members, records = len(index.kinds), len(index)
    one_each = (index.kinds, index.offsets, index.sizes, index.checks)
    if any(array.shape != (members,) for array in one_each) or index.starts.shape != (records + 1,):
        return False
    if index.starts[0] != 0 or index.starts[-1] != members or np.any(np.diff(index.starts) < 1):
        return False
    if records and (np.any(np.diff(index.name_ends) < 0) or index.name_ends[-1] > len(index.names)):
        return False
    is_bad = index.offsets < 0
    return not (
        (members and index.kinds.max() >= len(index.suffixes))
        or np.any(index.sizes < 0)
        or np.any(index.sizes[is_bad] >= len(index.problems))
    )
