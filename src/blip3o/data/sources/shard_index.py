"""The index of one tar shard: where each record's members lie, as a few flat arrays."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3o.data.sources.files import FileStamp

_VERSION = 4
"""Goes up with every change of what an index holds or of which members are records."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardIndex:
    """Members of the records of one shard; record r owns members starts[r] to starts[r + 1].

    Args:
        names: the keys of all records, UTF-8, one after the other [bytes].
        name_ends: where each key ends [records].
        starts: number of each record's first member [records + 1].
        suffixes: every different text after a key ("png", "source.png", "json").
        kinds: suffix of each member, as a place in `suffixes` [members].
        offsets: where each member's bytes begin; -1 for one that cannot be read [members].
        sizes: how many bytes it has; of one that cannot be read its place in `problems` [members].
        checks: check sums of the headers in front of the members' bytes [members].
        problems: why members cannot be read.
        damage: what is wrong with the shard, one line each; its whole records are here.
        passed_over: how many members belong to no record, by reason.
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
        """Returns the name of a record; a byte that is no UTF-8 as a backslash and its number.

        Args:
            record: 0 to len - 1.
        """
        start = int(self.name_ends[record - 1]) if record else 0
        name = self.names[start : int(self.name_ends[record])].tobytes()
        return name.decode(errors="backslashreplace")


_TEXTS = ("suffixes", "problems", "damage")


def pack(index: ShardIndex, stamp: FileStamp) -> dict[str, Any]:
    """Returns the arrays that are stored of an index.

    Args:
        index: of a shard.
        stamp: size and version of the shard.
    """
    arrays = {f.name: getattr(index, f.name) for f in dataclasses.fields(index)}
    texts = {name: np.array(arrays[name], dtype=np.str_) for name in _TEXTS}
    texts["passed_over"] = np.array(json.dumps(dict(index.passed_over)))
    facts = np.array([str(_VERSION), str(stamp.size), stamp.tag])
    return {**arrays, **texts, "stamp": facts}


def unpack(stored: Mapping[str, Any], stamp: FileStamp | None) -> ShardIndex | None:
    """Returns a stored index, None if it is of another file or version, or contradicts itself.

    Args:
        stored: arrays by name.
        stamp: of the shard; None asks for no certain one.

    Raises:
        Exception: of many kinds for arrays that are those of no index.
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
    """Returns whether the arrays fit together, so that reading by them finds members or fails."""
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
