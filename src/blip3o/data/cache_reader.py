"""Reads cached image features and checks them.

If a row has changed since it was written, the run stops; the next start computes its chunk again.
"""

import dataclasses
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.data.cache_files import HASH_BYTES, CacheFiles, CacheInfo, LeftOut, find_files, hash_row
from blip3o.data.sources import Source


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """The mapped files of a cache."""

    files: CacheFiles
    info: CacheInfo
    array: NDArray[np.float16]
    sums: NDArray[np.uint8] | None


class FeatureCache:
    """Cached features of several sources and roles.

    Args:
        folder: folder of the cache.
        fingerprint: required encoder, weights and preprocessing.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self._data: dict[tuple[str, str], str] = {}
        self._opened: dict[tuple[str, str], _Opened] = {}

    def get(self, source: str, role: str, position: int) -> Tensor:
        """Returns the features [N, C] of one image, float16.

        Args:
            source: name of the data source.
            role: role of the image in the record.
            position: position of the record in its source.

        Raises:
            ValueError: if the image was unreadable when the cache was built.
            UsageError: if the cache is missing, unfinished, damaged, or belongs to another encoder
                or other data.
        """
        opened = self._open(source, role)
        row = opened.array[position].copy()
        sums = opened.sums
        if sums is not None and hash_row(row, opened.info, position) != sums[position].tobytes():
            raise _damaged(opened, position)
        if np.isnan(row.flat[0]):
            note = opened.files.read_left_out().get(position)
            reason = f": {note['reason']}" if note is not None else ""
            raise ValueError(
                f"the image {role!r} could not be read when its features were cached{reason}"
            )
        return torch.from_numpy(row)

    def left_out(self, source: Source, role: str) -> dict[int, LeftOut]:
        """Returns the records whose image is unreadable, by position; call `check` before."""
        opened = self._open(source.name, role)
        notes = opened.files.read_left_out()
        return {k: note for k, note in notes.items() if np.isnan(opened.array[k].flat[0])}

    def is_complete(self, source: str, role: str, data: str | None = None) -> bool:
        """Returns whether the cache of a source and role is complete and of the right encoder.

        `data` is the fingerprint of the records; None stands for the first data of this name.
        """
        try:
            self._info(find_files(self.folder, source, role, data), f"{source}/{role}", data)
        except UsageError:
            return False
        return True

    def check(self, source: Source, role: str) -> None:
        """Checks that the cache holds the features of a source; later reads use these features.

        Raises:
            UsageError: if the cache is missing, unfinished, or of another encoder or other data.
        """
        data = source.fingerprint()
        files = find_files(self.folder, source.name, role, data)
        plain = find_files(self.folder, source.name, role)
        if not files.info.exists() and plain.info.exists():
            raise _other_data(plain)
        info = self._info(files, f"{source.name}/{role}", data)
        if info.hashes is None:
            say(f"{files.array} is of an older version without hashes: damage is not detected")
        self._data[source.name, role] = data

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": {}}  # each worker maps the files itself

    def _open(self, source: str, role: str) -> _Opened:
        if (source, role) not in self._opened:
            data = self._data.get((source, role))
            files = find_files(self.folder, source, role, data)
            info = self._info(files, f"{source}/{role}", data)
            array = np.memmap(files.array, dtype=np.float16, mode="r", shape=info.shape)
            sums = None
            if info.hashes is not None:
                shape = (info.shape[0], HASH_BYTES)
                sums = np.memmap(files.sums, dtype=np.uint8, mode="r", shape=shape)
            self._opened[source, role] = _Opened(
                files=files,
                info=info,
                array=array.view(np.ndarray),
                sums=None if sums is None else sums.view(np.ndarray),
            )
        return self._opened[source, role]

    def _info(self, files: CacheFiles, what: str, data: str | None) -> CacheInfo:
        info = files.read_info()
        if info is None:
            raise UsageError(f"no complete feature cache of {what} in {self.folder}")
        if info.fingerprint != self.fingerprint:
            raise UsageError(
                f"the feature cache {files.array} was made by another image encoder; delete it"
            )
        if data is not None and info.data != data:
            raise _other_data(files)
        if not files.done(info).all():
            raise UsageError(f"the feature cache {files.array} is unfinished; build it again")
        return info


def _other_data(files: CacheFiles) -> UsageError:
    return UsageError(f"the feature cache {files.array} was made from other data; delete it")


def _damaged(opened: _Opened, position: int) -> UsageError:
    """Marks the chunk of a changed row as missing and returns the error."""
    todo = f"delete it: {opened.files.array} and the files of the same name"
    with suppress(OSError), opened.files.marks.open("r+b") as marks:
        marks.seek(position // opened.info.chunk)
        marks.write(b"\0")
        marks.flush()
        os.fsync(marks.fileno())
        todo = "run the same command again: it computes this part again"
    return UsageError(
        f"the feature cache {opened.files.array} is damaged: the row of record {position} has "
        f"changed since it was written; {todo}"
    )
