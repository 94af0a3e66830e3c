"""Reads cached image features and checks them.

If a row has changed since it was written, the run stops, and the next start computes its shard
again. A row and its hash are one read, from a disk as from a store. Files are not mapped to memory:
a system allows only some 65,000 maps, and a large source has as many shards.
"""

import bisect
import dataclasses
from contextlib import suppress

import torch
from torch import Tensor

from blip3o.core.errors import UsageError, reason_of
from blip3o.data.cache_files import CacheFiles, LeftOut, ShardInfo
from blip3o.data.sources import Source
from blip3o.data.sources.files import is_remote, store_of


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """The files of a source and role, and the description of each shard."""

    files: CacheFiles
    shards: list[ShardInfo]


class FeatureCache:
    """Cached features of several sources and roles.

    Args:
        folder: folder of the cache, or its address in a store such as "s3://bucket/features".
        fingerprint: required encoder, weights and preprocessing.
    """

    def __init__(self, folder: str, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.is_remote = is_remote(folder)
        self._store = store_of(folder)
        self._opened: dict[tuple[str, str], _Opened] = {}

    def files(self, source: Source, role: str) -> CacheFiles:
        """Returns the files of a source and role; they need not exist."""
        return CacheFiles(self.folder, source, role, self.fingerprint)

    def open(self, source: Source, role: str) -> None:
        """Finds the features of a source and role for later reads.

        Raises:
            UsageError: if features of this encoder and these records are missing or damaged.
        """
        files = self.files(source, role)
        infos = files.infos()
        shards = [info for info in infos if info is not None]
        if len(shards) < len(infos):
            raise UsageError(
                f"{len(infos) - len(shards)} of {len(infos)} shards of {source.name}/{role} have "
                f"no features in {files.folder}; `blip3o data cache` computes them"
            )
        self._opened[source.name, role] = _Opened(files=files, shards=shards)

    def get(self, source: str, role: str, position: int) -> Tensor:
        """Returns the features [N, C] of one image, float16, after `open`.

        Args:
            source: name of the data source.
            role: role of the image in the record.
            position: position of the record in its source.

        Raises:
            ValueError: if the image was unreadable when the cache was built.
            UsageError: if the features are damaged or cannot be read.
        """
        opened = self._opened[source, role]
        files = opened.files
        number = bisect.bisect_right(files.ends, position)
        row = position - files.ends[number] + files.lengths[number]
        info = opened.shards[number]
        if row in info.left_out:
            raise ValueError(
                f"the image {role!r} could not be read when its features were cached: "
                f"{info.left_out[row]['reason']}"
            )
        try:
            features = files.read(self._store, number, row, info.shape)
        except OSError as error:  # not the fault of the record
            raise UsageError(f"cannot read {files.path(number)}: {reason_of(error)}") from error
        if features is None:
            raise _damaged(files, number, position)
        return torch.from_numpy(features)

    def left_out(self, source: str, role: str) -> dict[int, LeftOut]:
        """Returns the records whose image is unreadable, by position, after `open`."""
        opened = self._opened[source, role]
        starts = [0, *opened.files.ends]
        return {
            start + row: note
            for start, info in zip(starts, opened.shards, strict=False)
            for row, note in info.left_out.items()
        }


def _damaged(files: CacheFiles, number: int, position: int) -> UsageError:
    """Removes the features of a shard and returns the error."""
    path = files.path(number)
    todo = "delete it"
    with suppress(OSError, UsageError):
        files.remove(number)
        todo = "run the same command again: it computes this shard again"
    return UsageError(
        f"the feature cache {path} is damaged: the row of record {position} has changed since it "
        f"was written; {todo}"
    )
