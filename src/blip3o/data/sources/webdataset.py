"""WebDataset tar shards with random access.

    000017.png  000017.json            an image and its fields
    000017.jpg  000017.txt             an image and its caption
    000017.source.png  000017.target.png  000017.json      an edit

`KEY.txt` or `KEY.caption` is the caption and takes precedence over `KEY.json`. A record with two
members for one part is a bad record.

Records are read by position, so shuffling and resuming need no extra reads. Shards may be on a
disk, an HTTP server, S3 or the Hugging Face Hub.
"""

import bisect
import dataclasses
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from blip3o.core.config import LocalPath
from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.core.texts import decode_text, load_json
from blip3o.data.captions import without_captions
from blip3o.data.sources.files import expand, files_of, is_remote
from blip3o.data.sources.names import Use, uses
from blip3o.data.sources.patterns import counted
from blip3o.data.sources.shard_index import ShardIndex
from blip3o.data.sources.shard_scan import header_check
from blip3o.data.sources.shards import INDEX_SUFFIX, index_shards
from blip3o.data.sources.tar import BLOCK

_LOCAL_GAP, _REMOTE_GAP = 1 << 16, 1 << 20
"""Members that are at most this many bytes apart are read in one read."""
_MAX_MEMBER_BYTES = 1 << 28
"""Maximum length of a member; the header of a damaged file may claim any length."""

_Place = tuple[int, int, int, Use]
"""Offset, size and header checksum of a member, and the part of the record that it holds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WebDatasetConfig:
    """Tar shards of one data set.

    Args:
        path: a shard, or a pattern such as "data/scenes-*.tar" or "https://host/{000..099}.tar";
            shards are read in the order of their names.
        name: short name for logs, quarantine and feature caches.
        salvage: whether to use the intact records of a damaged shard, with a warning, instead of
            refusing it.
    """

    kind: str = "webdataset"
    path: LocalPath
    name: str
    salvage: bool = False

    def build(self, jobs: int = 1) -> "WebDatasetSource":
        """Returns the open source.

        Raises:
            UsageError: if no shard matches, or a shard is unreadable or damaged.
        """
        return WebDatasetSource(self, jobs)


class WebDatasetSource:
    """Records of tar shards by position.

    Args:
        config: the shards.
        jobs: number of processes that index new shards.
    """

    def __init__(self, config: WebDatasetConfig, jobs: int = 1) -> None:
        self.name = config.name
        self.paths = _shards_of(config.path)
        self.is_remote = is_remote(self.paths[0])
        self._gap = _REMOTE_GAP if self.is_remote else _LOCAL_GAP
        self._files = files_of(self.paths[0])
        self.shards = index_shards(
            self.paths, salvage=config.salvage, jobs=jobs, what=f"shards of {self.name}"
        )
        self.shard_lengths: Sequence[int] = [len(shard) for shard in self.shards]
        self._ends = list(itertools.accumulate(self.shard_lengths))
        passed_over: Counter[str] = Counter()
        for shard in self.shards:
            passed_over.update(shard.passed_over)
        self.passed_over: Mapping[str, int] = dict(passed_over.most_common())
        if not len(self):
            others = "".join(f"; {count} x {reason}" for reason, count in self.passed_over.items())
            raise UsageError(f"no records in {config.path}{others}")
        for path, shard in zip(self.paths, self.shards, strict=True):
            if not len(shard):
                say(f"warning: no records in the shard {path}")

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, position: int) -> tuple[str, Mapping[str, bytes], Mapping[str, Any]]:
        """Returns key, images by role, and fields of one record.

        Raises:
            ValueError: if the record's JSON or text is invalid, or the shard does not hold the
                record at the place in its index.
            OSError: if the shard cannot be read.
            UsageError: if a remote shard cannot be reached.
        """
        number, record = self._place(position)
        shard, path = self.shards[number], self.paths[number]
        key = shard.key(record)
        found: list[tuple[Use, bytes]] = []
        for start, end, members in self._planned_reads(_used_members(shard, record, key)):
            data = self._files.read(path, start, end - start)
            if len(data) != end - start:
                raise ValueError(f"{path} ends inside record {key}")
            for offset, size, check, use in members:
                at = offset - start
                if header_check(data[at - BLOCK : at]) != check:
                    raise ValueError(
                        f"{path} does not hold record {key} where its index says: it has been "
                        "changed or damaged; download it again or delete its index"
                    )
                found.append((use, data[at : at + size]))
        try:
            return (key, *_contents(found))
        except ValueError as error:
            raise ValueError(f"record {key}: {error}") from error

    def files(self) -> Sequence[str]:
        """Returns the local shards."""
        return () if self.is_remote else self.paths

    def fingerprint(self) -> str:
        """Returns a hash of the shards' names and of every record's name, place and size."""
        return self._fingerprint(range(len(self.shards)))

    def shard_fingerprint(self, number: int) -> str:
        """Returns such a hash of one shard: the same for a copy, on any disk or server."""
        return self._fingerprint([number])

    def _fingerprint(self, numbers: Iterable[int]) -> str:
        digest = hashlib.sha256()
        for number in numbers:
            shard = self.shards[number]
            digest.update(os.fsencode(self.paths[number].rpartition("/")[2]))
            for array in (shard.names, shard.name_ends, shard.starts, shard.kinds):
                digest.update(array.tobytes())
            digest.update(shard.offsets.tobytes() + shard.sizes.tobytes())
        return digest.hexdigest()[:32]

    def _planned_reads(self, members: list[_Place]) -> list[tuple[int, int, list[_Place]]]:
        """Returns start, end and members of each read; usually all members fit into one read."""
        reads: list[tuple[int, int, list[_Place]]] = []
        start = end = members[0][0] - BLOCK
        together: list[_Place] = []
        for member in members:
            if member[0] - BLOCK > end + self._gap:
                reads.append((start, end, together))
                start, together = member[0] - BLOCK, []
            together.append(member)
            end = max(end, member[0] + member[1])
        reads.append((start, end, together))
        return reads

    def _place(self, position: int) -> tuple[int, int]:
        """Returns the number of a record's shard, and its number in that shard."""
        number = bisect.bisect_right(self._ends, position)
        return number, position - self._ends[number] + self.shard_lengths[number]


def _used_members(shard: ShardIndex, record: int, key: str) -> list[_Place]:
    """Returns the used members of a record, at least one, in the order of their offsets."""
    members = slice(int(shard.starts[record]), int(shard.starts[record + 1]))
    suffixes = tuple([shard.suffixes[kind] for kind in shard.kinds[members].tolist()])
    try:
        found_uses = uses(suffixes)
    except ValueError as error:
        raise ValueError(f"record {key}: {error}") from error
    offsets, sizes = shard.offsets[members].tolist(), shard.sizes[members].tolist()
    checks = shard.checks[members].tolist()
    places = [
        (offset, size, check, use)
        for offset, size, check, use in zip(offsets, sizes, checks, found_uses, strict=True)
        if use is not None
    ]
    places.sort()
    for offset, size, _, _ in places:
        if offset < BLOCK:
            raise ValueError(f"record {key}: {shard.problems[size]}")
        if size > _MAX_MEMBER_BYTES:
            raise ValueError(f"record {key}: a member of {size} bytes is too large")
    return places


def _shards_of(pattern: str) -> list[str]:
    """Returns the shards that match a pattern, at least one."""
    paths = expand(pattern)
    if paths != [pattern] and not is_remote(pattern):
        paths = [path for path in paths if not path.endswith(INDEX_SUFFIX)]  # "folder/*"
    if (
        paths != [pattern]
        and not is_remote(pattern)
        and counted(pattern, is_local=True) == [pattern]
    ):
        orphaned = {path.removesuffix(INDEX_SUFFIX) for path in expand(pattern + INDEX_SUFFIX)}
        for path in sorted(orphaned.difference(paths)):
            say(f"warning: there is an index of the shard {path}, but the shard is missing")
    folders = [path for path in paths if os.path.isdir(path)]
    if not paths or folders == [pattern]:
        raise UsageError(
            f"no shard matches {pattern}; give a tar file or a pattern such as data/*.tar"
        )
    if folders:
        raise UsageError(f"{pattern} matches the folder {folders[0]}; give a pattern of tars only")
    return paths


def _contents(members: list[tuple[Use, bytes]]) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Returns the images by role and the fields of a record."""
    files: dict[str, bytes] = {}
    fields: dict[str, Any] = {}
    captions: list[str] = []
    for use, data in members:
        if use.kind == "image":
            files[use.role] = data
        elif use.kind == "fields":
            loaded = load_json(data)
            if not isinstance(loaded, dict):
                raise ValueError("the record's JSON is not an object")
            fields = loaded
        else:
            captions.append(decode_text(data, "utf-8").strip())
    if captions:
        if captions.count(captions[0]) < len(captions):
            raise ValueError("two texts give the record different captions; keep one of them")
        fields = {**without_captions(fields), "caption": captions[0]}
    return files, fields
