"""Indices of tar shards, which give direct access to any record.

An index is made once from the shard's headers and stored next to the shard as
`SHARD.tar.index.npz`. For a remote shard or a read-only folder it is stored in the user's cache.
An index that was published next to a remote shard is used. A million records take about 45 MB.
"""

import functools
import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from blip3o.core.errors import UsageError
from blip3o.core.files import write_atomic
from blip3o.core.log import progress, say
from blip3o.data.parallel import in_processes
from blip3o.data.sources.files import REMOTE_READS, files_of, is_remote, neighbor, private_path
from blip3o.data.sources.local_files import FileStamp
from blip3o.data.sources.shard_index import ShardIndex, pack, unpack
from blip3o.data.sources.shard_scan import scan
from blip3o.imaging.kinds import HEAD_BYTES, store_of

INDEX_SUFFIX = ".index.npz"
_INDEX_BYTES = 1 << 16
"""An index is never longer than its shard plus this number of bytes."""


def index_shards(
    paths: Sequence[str], *, salvage: bool = False, jobs: int = 1, what: str = "shards"
) -> list[ShardIndex]:
    """Returns the indices of shards; makes and stores those that are missing or outdated.

    Args:
        paths: shards, local or remote.
        salvage: whether to use the intact records of a damaged shard, with a warning, instead of
            refusing it.
        jobs: number of processes that read local shards; threads read remote ones.
        what: name of the shards, for the progress display.

    Raises:
        UsageError: if a shard cannot be read, is not a plain tar, or is damaged without `salvage`.
    """
    found = {path: load_index(path, salvage=salvage) for path in paths}
    missing = [path for path, index in found.items() if index is None]
    remote = [path for path in missing if is_remote(path)]
    local = [path for path in missing if not is_remote(path)]
    label = f"indexing {what}"
    make = functools.partial(make_index, salvage=salvage)
    if remote:
        with ThreadPoolExecutor(REMOTE_READS) as pool:
            made = pool.map(make, remote)
            found.update(zip(remote, progress(made, total=len(remote), what=label), strict=True))
    if local:
        found.update(zip(local, in_processes(make, local, jobs, label), strict=True))
    indices = [index for index in found.values() if index is not None]
    for path, index in zip(paths, indices, strict=True):
        if index.damage:
            say(f"warning: shard {path} is damaged: {'; '.join(index.damage)}")
    return indices


def load_index(path: str, *, salvage: bool = False) -> ShardIndex | None:
    """Returns the stored index of a shard; None if there is none for its current version.

    The index of a damaged shard is returned only with `salvage`.

    Raises:
        UsageError: if a remote shard's server cannot be reached.
    """
    for place in _places(path):
        try:
            stored = np.load(io.BytesIO(place.read_bytes()), allow_pickle=False)
            index = unpack(stored, None if is_remote(path) else files_of(path).stamp(path))
        except Exception:  # noqa: BLE001  (a damaged file raises many kinds of errors)
            continue
        if index is not None:
            return None if index.damage and not salvage else index
    return _published(path) if is_remote(path) else None


def make_index(path: str, *, salvage: bool = False) -> ShardIndex:
    """Reads all headers of a shard; returns and stores its index.

    With `salvage`, the intact records of a damaged shard are used.

    Raises:
        UsageError: if the shard cannot be read, is not a plain tar, or is damaged without
            `salvage`.
    """
    files = files_of(path)
    try:
        stamp = files.stamp(path)
        index = scan(path, stamp.size)
    except OSError as error:
        raise UsageError(f"cannot read the shard {path}: {error.strerror or error}") from error
    if index.damage and not (salvage and len(index)):
        reason = f"{index.damage[0]}; download or write it again"
        if not stamp.size:
            reason = "it is empty (0 bytes); download or write it again"
        elif not len(index):
            what = store_of(files.read(path, 0, HEAD_BYTES))
            reason = f"it is {what}" if what else reason
        raise UsageError(f"shard {path} is damaged or not a plain tar: {reason}")
    buffer = io.BytesIO()
    np.savez(buffer, **pack(index, stamp))
    _keep(path, buffer.getvalue())
    return index


def _places(path: str) -> Iterable[Path]:
    """Yields the places where an index may be stored, best first."""
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
            continue  # a read-only folder; if all places are, the index stays in memory


def _published(path: str) -> ShardIndex | None:
    files, address = files_of(path), neighbor(path, INDEX_SUFFIX)
    try:
        length = files.stamp(address).size
    except UsageError:
        return None  # no index; if the server is down, reading the shard reports it
    size = files.stamp(path).size
    data, index = b"", None
    try:
        if length <= size + _INDEX_BYTES:
            data = files.read(address, 0, length)
            arrays = np.load(io.BytesIO(data), allow_pickle=False)
            index = unpack(arrays, FileStamp(size=size, tag=""))
    except Exception:  # noqa: BLE001  (the file may hold anything)
        index = None
    if index is None:
        say(f"warning: {address} is of another shard; reading {path} instead")
    else:
        _keep(path, data)
    return index
