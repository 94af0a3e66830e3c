"""Reads the headers of one tar shard once and finds its records.

Members with the same key form one record wherever they are in an archive, because `tar` writes a
folder in disk order. If two of them hold the same part, the key occurs more than once; then each
run of neighbors is a separate record, as in WebDataset.
"""

import array
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from blip3o.data.sources.files import files_of, is_remote
from blip3o.data.sources.links import LinkTable
from blip3o.data.sources.names import (
    HIDDEN,
    OTHER_TEXT,
    is_in_junk,
    is_one_record,
    same_key,
    split_name,
    use_of,
    why_passed_over,
)
from blip3o.data.sources.shard_index import ShardIndex
from blip3o.data.sources.tar import (
    BLOCK,
    FILE,
    HARD_LINK,
    SPARSE,
    SYMBOLIC_LINK,
    Member,
    TarError,
    members,
    next_header,
)

_LOCAL_WINDOW, _REMOTE_WINDOW = 1 << 14, 1 << 22
_MAX_SUFFIXES = 256
_MAX_REASONS = 20
_NO_FILE = "a device, a pipe or something else that is not a file"


def header_check(block: bytes) -> int:
    """Returns a checksum of name, owner and size in a header, but not of its date."""
    return zlib.crc32(block[:136])


def scan(path: str, size: int) -> ShardIndex:
    """Returns the index of a shard of `size` bytes by reading all its headers.

    Raises:
        OSError: if it cannot be read.
        UsageError: if a remote one cannot be reached.
    """
    damage: list[str] = []
    lists = _Lists()
    for member in _members(path, size, damage):
        lists.add(member)
    if lists.links.wanted:
        for member in _members(path, size, []):
            lists.links.note_file(member)
    return lists.close(damage)


def _members(path: str, size: int, damage: list[str]) -> Iterator[Member]:
    """Yields all members of a shard; records each damaged place and continues after it."""
    files = files_of(path)
    window = _REMOTE_WINDOW if is_remote(path) else _LOCAL_WINDOW
    part = 0
    start: int | None = 0

    def read(offset: int, length: int) -> bytes:
        return files.read(path, offset, length)

    while start is not None:
        try:
            for member in members(read, size, window, start, part):
                part = member.part
                yield member
            return
        except TarError as error:
            damage.append(str(error))
            if error.offset < BLOCK:  # not a tar at all
                return
            start = next_header(read, size, error.offset)


class _Lists:
    """Collects the members of a shard in flat arrays, without an object for each."""

    def __init__(self) -> None:
        self.links = LinkTable()
        self._names = bytearray()
        self._name_ends, self._starts = array.array("q"), array.array("q")
        self._hashes = array.array("q")  # hash of key and archive number of each group
        self._offsets, self._sizes = array.array("q"), array.array("q")
        self._kinds, self._checks = array.array("B"), array.array("I")
        self._suffixes: dict[bytes, int | None] = {}
        self._known: list[str] = []
        self._problems: list[str] = []
        self._passed_over: Counter[str] = Counter()
        self._last_part, self._last_key = -1, b""
        self._folder, self._is_junk = b"", False

    def add(self, member: Member) -> None:
        name, offset, size, member_kind, _, header, _ = member
        key, suffix = split_name(name)
        is_link = member_kind != FILE and member_kind in (HARD_LINK, SYMBOLIC_LINK)
        if is_link:
            self.links.note_link(member)
        if not key or self._is_in_junk(name):
            self._passed_over[HIDDEN] += 1
            return
        kind = self._suffixes.get(suffix, -1)
        if kind == -1:
            kind = self._new_suffix(suffix)
        if kind is None:
            self._pass_over_file(name, suffix)
            return
        check = 0
        if member_kind == FILE:
            check = header_check(header)
        elif is_link:
            if self.links.leads_to_itself(member):
                self._passed_over["a link of a file to itself"] += 1
                return
            self.links.want(member, len(self._kinds))
        elif member_kind == SPARSE:
            offset, size = -1, self._problem(member, "a sparse file; write it without --sparse")
        else:
            self._passed_over[_NO_FILE] += 1
            return
        if key != self._last_key or member.part != self._last_part:
            self._last_key, self._last_part = key, member.part
            self._names += key
            self._name_ends.append(len(self._names))
            self._starts.append(len(self._kinds))
            self._hashes.append(hash((member.part, same_key(key))))
        self._kinds.append(kind)
        self._offsets.append(offset)
        self._sizes.append(size)
        self._checks.append(check)

    def close(self, damage: Sequence[str]) -> ShardIndex:
        self._resolve_links()
        self._starts.append(len(self._kinds))
        kinds = np.array(self._kinds, dtype=np.uint8)
        starts = np.array(self._starts, dtype=np.int64)
        name_ends = np.array(self._name_ends, dtype=np.int64)
        names = np.frombuffer(bytes(self._names), dtype=np.uint8)
        order: NDArray[np.int64] | slice = slice(None)
        owners = self._owners(kinds, starts)
        if owners is not None:
            sizes = np.diff(starts)
            order = np.argsort(np.repeat(owners, sizes), kind="stable")
            kept = np.flatnonzero(owners == np.arange(len(owners)))
            starts = np.concatenate([[0], np.cumsum(np.bincount(owners, sizes)[kept])])
            pieces = [names[end - length : end] for end, length in self._spans(name_ends, kept)]
            names, name_ends = np.concatenate(pieces), np.cumsum([len(one) for one in pieces])
        for kind, count in enumerate(np.bincount(kinds, minlength=len(self._known)).tolist()):
            use = use_of(self._known[kind])
            if use is not None and use.kind == "other text":
                self._passed_over[OTHER_TEXT] += count
        return ShardIndex(
            names=names,
            name_ends=name_ends.astype(np.int64),
            starts=starts.astype(np.int64),
            suffixes=tuple(self._known),
            kinds=kinds[order],
            offsets=np.array(self._offsets, dtype=np.int64)[order],
            sizes=np.array(self._sizes, dtype=np.int64)[order],
            checks=np.array(self._checks, dtype=np.uint32)[order],
            problems=tuple(self._problems),
            damage=tuple(damage),
            passed_over=dict(self._passed_over.most_common()),
        )

    def _is_in_junk(self, name: bytes) -> bool:
        folder = name.rpartition(b"/")[0]
        if folder != self._folder:  # the next member is usually in the same folder
            self._folder = folder
            self._is_junk = is_in_junk(folder.decode("latin-1"))
        return self._is_junk

    def _pass_over_file(self, name: bytes, suffix: bytes) -> None:
        if use_of(suffix.decode("latin-1")) is not None:
            reason = f"one of more than {_MAX_SUFFIXES} different suffixes"
        else:
            reason = why_passed_over(name.rpartition(b"/")[2].decode("latin-1"))
            if reason not in self._passed_over and len(self._passed_over) >= _MAX_REASONS:
                reason = "neither an image nor a text: other endings"
        self._passed_over[reason] += 1

    def _new_suffix(self, suffix: bytes) -> int | None:
        text = suffix.decode(errors="backslashreplace")
        kind = None
        if use_of(text) is not None and len(self._known) < _MAX_SUFFIXES:
            kind = len(self._known)
            self._known.append(text)
        self._suffixes[suffix] = kind
        return kind

    def _problem(self, member: Member, text: str) -> int:
        name = member.name.decode(errors="backslashreplace")
        self._problems.append(f"{name} is {text}")
        return len(self._problems) - 1

    def _resolve_links(self) -> None:
        for place, member in self.links.wanted:
            found = self.links.resolve(member)
            if isinstance(found, str):
                self._offsets[place], self._sizes[place] = -1, self._problem(member, found)
            else:
                self._offsets[place], self._sizes[place] = found.offset, found.size
                self._checks[place] = header_check(found.header)

    def _owners(
        self, kinds: NDArray[np.uint8], starts: NDArray[np.int64]
    ) -> NDArray[np.int64] | None:
        """Returns, for each group of neighbors, the first group of its record.

        None if no two groups have the same key.
        """
        hashes = np.array(self._hashes, dtype=np.int64)
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        if not np.any(ordered[1:] == ordered[:-1]):
            return None
        owners = np.arange(len(hashes))
        for same in np.split(order, np.flatnonzero(np.diff(ordered)) + 1):
            if len(same) == 1:
                continue
            own_kinds = [kind for one in same for kind in kinds[starts[one] : starts[one + 1]]]
            if is_one_record([self._known[kind] for kind in own_kinds]):
                owners[same] = same[0]
        return owners

    @staticmethod
    def _spans(ends: NDArray[np.int64], which: NDArray[np.int64]) -> list[tuple[int, int]]:
        lengths = np.diff(ends, prepend=0)
        return list(zip(ends[which].tolist(), lengths[which].tolist(), strict=True))
