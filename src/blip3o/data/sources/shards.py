"""The index of one tar shard: where each record's members lie, as a few flat arrays.

Made once by reading the shard's headers and kept beside it as `SHARD.tar.index.npz`; that of a
remote shard, or in a folder that cannot be written to, in the user's cache. An index that was
published beside a remote shard is taken from there. A million records take about 40 MB.
"""

import array
import dataclasses
import io
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3o.core.errors import UsageError
from blip3o.core.files import write_atomic
from blip3o.core.log import progress, say
from blip3o.data.sources.files import FileStamp, files_of, is_remote, private_path, read_file
from blip3o.data.sources.tar import BLOCK, TarError, members, next_header

PICTURE_SUFFIXES = ("png", "jpg", "jpeg", "webp")
INDEX_SUFFIX = ".index.npz"
_SUFFIXES = (*PICTURE_SUFFIXES, "json", "txt")
_VERSION = 3
_LOCAL_WINDOW, _REMOTE_WINDOW = 1 << 14, 1 << 22
_REMOTE_JOBS = 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardIndex:
    """Members of the records of one shard; record r owns members starts[r] to starts[r + 1].

    Args:
        names: the keys of all records, UTF-8, one after the other [bytes].
        name_ends: where each key ends [records].
        starts: number of each record's first member [records + 1].
        suffixes: every different text after a key ("png", "source.png", "json").
        kinds: suffix of each member, as a place in `suffixes` [members].
        offsets: where each member's bytes begin [members].
        sizes: how many bytes it has [members].
        damage: what is wrong with the shard, one line each; its whole records are here.
    """

    names: NDArray[np.uint8]
    name_ends: NDArray[np.int64]
    starts: NDArray[np.int64]
    suffixes: tuple[str, ...]
    kinds: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    damage: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.name_ends)

    def key(self, record: int) -> str:
        """Returns the name of a record.

        Args:
            record: 0 to len - 1.
        """
        start = int(self.name_ends[record - 1]) if record else 0
        return self.names[start : int(self.name_ends[record])].tobytes().decode(errors="replace")


def index_shards(
    paths: Sequence[str], *, salvage: bool = False, jobs: int = 1, what: str = "shards"
) -> list[ShardIndex]:
    """Returns the indices of shards; makes and keeps those that are missing or of other files.

    Args:
        paths: shards, local or remote.
        salvage: take the whole records of a damaged shard, with a warning, instead of refusing it.
        jobs: processes that read local shards; remote ones are read by threads.
        what: name of the shards, for the progress.

    Raises:
        UsageError: if a shard cannot be read, is no plain tar, or is damaged and not salvaged.
    """
    found = {path: load_index(path, salvage=salvage) for path in paths}
    missing = [path for path, index in found.items() if index is None]
    remote = [path for path in missing if is_remote(path)]
    local = [path for path in missing if not is_remote(path)]
    label = f"indexing {what}"
    if remote:
        with ThreadPoolExecutor(_REMOTE_JOBS) as pool:
            made = pool.map(lambda path: make_index(path, salvage=salvage), remote)
            found.update(zip(remote, progress(made, total=len(remote), what=label), strict=True))
    if jobs > 1 and len(local) > 1:
        # Forked processes would inherit torch's threads in an unknown state.
        with multiprocessing.get_context("spawn").Pool(min(jobs, len(local))) as pool:
            work = pool.imap(_make, [(path, salvage) for path in local])
            found.update(zip(local, progress(work, total=len(local), what=label), strict=True))
    elif local:
        found.update(
            (path, make_index(path, salvage=salvage)) for path in progress(local, what=label)
        )
    indices = [index for index in found.values() if index is not None]
    for path, index in zip(paths, indices, strict=True):
        if index.damage:
            say(f"warning: shard {path} is damaged: {'; '.join(index.damage)}")
    return indices


def load_index(path: str, *, salvage: bool = False) -> ShardIndex | None:
    """Returns the index kept for a shard, or None if there is none of this very shard.

    Args:
        path: the shard.
        salvage: take that of a damaged shard, too.

    Raises:
        UsageError: if a remote shard's server stays away.
    """
    places: list[str] = [str(place) for place in _places(path)]
    for place in places:
        try:
            stored = np.load(io.BytesIO(Path(place).read_bytes()), allow_pickle=False)
            index = _unpack(stored, None if is_remote(path) else files_of(path).stamp(path))
        except Exception:  # noqa: BLE001  (a zip file may be broken in many ways)
            continue
        if index is not None:
            return None if index.damage and not salvage else index
    return _published(path) if is_remote(path) else None


def make_index(path: str, *, salvage: bool = False) -> ShardIndex:
    """Returns the index of a shard by reading all its headers, and keeps it.

    Args:
        path: the shard.
        salvage: take the whole records of a damaged shard instead of refusing it.

    Raises:
        UsageError: if the shard cannot be read, is no plain tar, or is damaged and not salvaged.
    """
    files = files_of(path)
    try:
        stamp = files.stamp(path)
        index = _scan(path, stamp.size)
    except OSError as error:
        raise UsageError(f"cannot read the shard {path}: {error.strerror or error}") from error
    if index.damage and not (salvage and len(index)):
        raise UsageError(
            f"shard {path} is damaged or no plain tar: {index.damage[0]}; fetch or write it again"
        )
    buffer = io.BytesIO()
    np.savez(buffer, **_pack(index, stamp))
    _keep(path, buffer.getvalue())
    return index


def _make(work: tuple[str, bool]) -> ShardIndex:
    return make_index(work[0], salvage=work[1])


def _places(path: str) -> Iterable[Path]:
    """Where an index may be kept, best first."""
    if not is_remote(path):
        yield Path(path + INDEX_SUFFIX)
    yield private_path(path, INDEX_SUFFIX)


def _keep(path: str, data: bytes) -> None:
    for place in _places(path):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(place, data, is_shared=True)
            return
        except OSError:
            continue  # a read-only folder; if all are, the index lives in memory only


def _published(path: str) -> ShardIndex | None:
    try:
        data = read_file(path + INDEX_SUFFIX)
    except UsageError:
        return None  # none there; if the server is away the shard itself will say so
    size = files_of(path).stamp(path).size
    try:
        index = _unpack(np.load(io.BytesIO(data), allow_pickle=False), FileStamp(size=size, tag=""))
    except Exception:  # noqa: BLE001  (whatever lies there)
        index = None
    if index is None:
        say(f"warning: {path + INDEX_SUFFIX} is of another shard; reading {path} instead")
    else:
        _keep(path, data)
    return index


def _pack(index: ShardIndex, stamp: FileStamp) -> dict[str, Any]:
    arrays = {f.name: getattr(index, f.name) for f in dataclasses.fields(index)}
    texts = {name: np.array(arrays[name], dtype=np.str_) for name in ("suffixes", "damage")}
    facts = np.array([str(_VERSION), str(stamp.size), stamp.tag])
    return {**arrays, **texts, "stamp": facts}


def _unpack(stored: Any, stamp: FileStamp | None) -> ShardIndex | None:  # noqa: ANN401
    """Returns a stored index, None if it is of another file; None as stamp asks for no file."""
    version, size, tag = stored["stamp"].tolist()
    if version != str(_VERSION):
        return None
    if stamp and (size != str(stamp.size) or (stamp.tag and tag != stamp.tag)):
        return None
    names = [field.name for field in dataclasses.fields(ShardIndex)]
    arrays: dict[str, Any] = {name: stored[name] for name in names}
    for name in ("suffixes", "damage"):
        arrays[name] = tuple(arrays[name].tolist())
    return ShardIndex(**arrays)


def _scan(path: str, size: int) -> ShardIndex:
    files = files_of(path)
    window = _REMOTE_WINDOW if is_remote(path) else _LOCAL_WINDOW
    lists = _Lists()
    damage: list[str] = []
    start: int | None = 0
    while start is not None:
        try:
            for member in members(lambda at, n: files.read(path, at, n), size, window, start):
                lists.add(member.name, member.offset, member.size)
            break
        except TarError as error:
            damage.append(str(error))
            if error.offset < BLOCK:  # not a tar at all: nothing to look for
                break
            start = next_header(lambda at, n: files.read(path, at, n), size, error.offset)
    return lists.close(damage)


class _Lists:
    """Collects the members of a shard without an object for each."""

    def __init__(self) -> None:
        self._names = bytearray()
        self._name_ends, self._starts = array.array("q"), array.array("q")
        self._offsets, self._sizes = array.array("q"), array.array("q")
        self._kinds = array.array("B")
        self._suffixes: dict[bytes, int | None] = {}
        self._last = b""

    def add(self, name: bytes, offset: int, size: int) -> None:
        key, suffix = split_name(name)
        kind = self._suffixes.get(suffix, -1)
        if kind == -1:
            is_known = suffix.rpartition(b".")[2].decode("latin-1") in _SUFFIXES
            known = sum(one is not None for one in self._suffixes.values())
            kind = self._suffixes[suffix] = known if is_known and known < 256 else None
        if kind is None or not key:
            return
        if key != self._last or not self._starts:
            self._last = key
            self._names += key
            self._name_ends.append(len(self._names))
            self._starts.append(len(self._kinds))
        self._kinds.append(kind)
        self._offsets.append(offset)
        self._sizes.append(size)

    def close(self, damage: Sequence[str]) -> ShardIndex:
        self._starts.append(len(self._kinds))
        known = [suffix for suffix, kind in self._suffixes.items() if kind is not None]
        return ShardIndex(
            names=np.frombuffer(bytes(self._names), dtype=np.uint8),
            name_ends=np.array(self._name_ends, dtype=np.int64),
            starts=np.array(self._starts, dtype=np.int64),
            suffixes=tuple(suffix.decode(errors="replace") for suffix in known),
            kinds=np.array(self._kinds, dtype=np.uint8),
            offsets=np.array(self._offsets, dtype=np.int64),
            sizes=np.array(self._sizes, dtype=np.int64),
            damage=tuple(damage),
        )


def split_name(name: bytes) -> tuple[bytes, bytes]:
    """Returns the key and the suffix; no key for hidden files, such as a Mac's `._a.png`.

    Args:
        name: a member's name with folders.
    """
    folder, _, base = name.rpartition(b"/")
    stem, _, suffix = base.partition(b".")
    return (folder + b"/" + stem if folder and stem else stem), suffix.lower()
