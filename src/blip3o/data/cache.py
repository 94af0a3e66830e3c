"""A cache of frozen image features: computed once, read by position, refused when stale.

One file a source and picture role, float16 [records, N, C]; a JSON beside it says which encoder and
which data it is of, and a byte a chunk of rows which of them are done. Processes share the chunks.
A picture that cannot be read leaves a row of NaN, so that training meets the same bad sample as it
would without a cache.
"""

import dataclasses
import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.files import write_atomic
from blip3o.core.log import progress, say
from blip3o.data.collate import read_pixels
from blip3o.data.sources import Source

_PROBES = 16
"""Chunks looked at, from all over the source, before it is said to have no picture."""


class _NoPictureError(UsageError):
    """None of some records has a picture that can be read."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Info:
    fingerprint: str
    data: str
    shape: tuple[int, ...]
    chunk: int


class FeatureCache:
    """Cached features of several sources and roles.

    Args:
        folder: where the files are.
        fingerprint: what must have computed them: encoder, weights, preprocessing.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self._arrays: dict[tuple[str, str], NDArray[np.float16]] = {}

    def get(self, source: str, role: str, position: int) -> Tensor:
        """Returns the features [N, C] of one picture, float16.

        Args:
            source: name of the data source.
            role: which picture of the record.
            position: the record's place in its source.

        Raises:
            ValueError: if the picture could not be read when the cache was built.
            UsageError: if the cache is missing, unfinished or of another encoder.
        """
        if (source, role) not in self._arrays:
            info = self._info(source, role)
            file = _files(self.folder, source, role)[0]
            array = np.memmap(file, dtype=np.float16, mode="r", shape=info.shape)
            self._arrays[source, role] = array.view(np.ndarray)
        row = self._arrays[source, role][position]
        if np.isnan(row.flat[0]):
            raise ValueError(
                f"the picture {role!r} could not be read when its features were cached"
            )
        return torch.from_numpy(row.copy())

    def is_complete(self, source: str, role: str) -> bool:
        """Returns whether a role of a source is cached whole, by the right encoder.

        Args:
            source: name of the data source.
            role: which picture of its records.
        """
        try:
            self._info(source, role)
        except UsageError:
            return False
        return True

    def check(self, source: Source, role: str) -> None:
        """Refuses features that are not of the records of a source.

        Args:
            source: the records.
            role: which picture of each record.

        Raises:
            UsageError: if the cache is missing, unfinished, of another encoder or of other data.
        """
        if self._info(source.name, role).data != source.fingerprint():
            file = _files(self.folder, source.name, role)[0]
            raise UsageError(f"the feature cache {file} was made from other data; delete it")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}  # a worker maps the files anew

    def _info(self, source: str, role: str) -> _Info:
        array_file, info_file = _files(self.folder, source, role)
        info = _read_info(array_file, info_file)
        if info is None:
            raise UsageError(f"no whole feature cache of {source}/{role} in {self.folder}")
        if info.fingerprint != self.fingerprint:
            raise UsageError(
                f"the feature cache {array_file} was made by another image encoder; delete it"
            )
        if not _done(array_file, info).all():
            raise UsageError(f"the feature cache {array_file} is unfinished; build it again")
        return info


def build_cache(
    source: Source,
    role: str,
    encode: Callable[[Tensor], Tensor],
    folder: Path,
    fingerprint: str,
    *,
    image_px: int,
    batch_size: int = 256,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Computes the features of one picture of every record; goes on where it stopped.

    Does nothing if they are there; replaces those of another encoder or of other data. Several
    processes of a run share the work by rank, on one machine or on one file system, and a run of
    another number of processes goes on with it. Of several runs that want the same features one
    computes them and the others wait.

    Args:
        source: the records.
        role: which picture of each record.
        encode: pixels [B, 3, P, P] to raw features [B, N, C].
        folder: created if missing.
        fingerprint: identifies encoder, weights and preprocessing.
        image_px: side of the pictures.
        batch_size: pictures at once.
        rank: which process this is.
        world_size: how many share the work; the cache is whole when all of them have returned.

    Raises:
        UsageError: if features are not finite in half precision, no picture can be read, or the
            disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    array_file, _ = _files(folder, source.name, role)
    wanted = (fingerprint, source.fingerprint())

    def rows_of(positions: range, shape: tuple[int, ...] | None) -> NDArray[np.float16]:
        return _encode(source, role, encode, positions, image_px, shape)

    with _alone(array_file.with_suffix(f".{rank}of{world_size}.lock")):
        with _alone(array_file.with_suffix(".lock")):
            info = _start(source, role, folder, wanted, batch_size, rows_of)
        done = _done(array_file, info)
        missing = [k for k in range(rank, len(done), world_size) if not done[k]]
        with _writing(array_file, info) as write:
            for number in progress(missing, what=f"features of {source.name}/{role}, batches"):
                write(number, rows_of(_positions(info, number), info.shape[1:]))


def _start(
    source: Source,
    role: str,
    folder: Path,
    wanted: tuple[str, str],
    batch_size: int,
    rows_of: Callable[[range, tuple[int, ...] | None], NDArray[np.float16]],
) -> _Info:
    """Returns what is there already, or makes the files with a first chunk in them."""
    array_file, info_file = _files(folder, source.name, role)
    info = _read_info(array_file, info_file)
    if info is not None and (info.fingerprint, info.data) == wanted:
        return info
    info_file.unlink(missing_ok=True)  # first, or it would vouch for the new array
    info = _Info(fingerprint=wanted[0], data=wanted[1], shape=(len(source),), chunk=batch_size)
    number, rows = _first_rows(info, rows_of)
    info = dataclasses.replace(info, shape=(len(source), *rows.shape[1:]))
    for file, size in _sizes(array_file, info).items():
        file.unlink(missing_ok=True)  # a new file: a run may still be reading the old one
        with file.open("wb") as made:
            made.truncate(size)
    with _writing(array_file, info) as write:
        write(number, rows)
    _write_info(info_file, info)
    return info


def _first_rows(
    info: _Info, rows_of: Callable[[range, tuple[int, ...] | None], NDArray[np.float16]]
) -> tuple[int, NDArray[np.float16]]:
    """Returns the number and the rows of a chunk with a picture in it; they tell the shape."""
    chunks = _num_chunks(info)
    failed = None
    for number in range(0, chunks, max(1, chunks // _PROBES)):
        try:
            return number, rows_of(_positions(info, number), None)
        except _NoPictureError as error:
            failed = failed or error
    raise failed or UsageError("there is no record to compute features of")


@contextmanager
def _writing(array_file: Path, info: _Info) -> Iterator[Callable[[int, NDArray[np.float16]], None]]:
    """Yields what writes the rows of a chunk, and then the word that they are there.

    Through files: a full disk kills who writes to mapped memory.
    """
    row_bytes = 2 * math.prod(info.shape[1:])
    with array_file.open("r+b") as rows_file, _marks(array_file).open("r+b") as marks_file:

        def write(number: int, rows: NDArray[np.float16]) -> None:
            _write_at(rows_file, number * info.chunk * row_bytes, rows.tobytes())
            _write_at(marks_file, number, b"\1")

        yield write


def _write_at(file: BinaryIO, place: int, data: bytes) -> None:
    try:
        file.seek(place)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(
            f"cannot write {file.name}: {error.strerror}; make room and run the same command "
            "again to go on"
        ) from error


def _positions(info: _Info, number: int) -> range:
    return range(number * info.chunk, min((number + 1) * info.chunk, info.shape[0]))


def _num_chunks(info: _Info) -> int:
    return -(-info.shape[0] // info.chunk)


def _marks(array_file: Path) -> Path:
    return array_file.with_suffix(".done")


def _sizes(array_file: Path, info: _Info) -> dict[Path, int]:
    """Returns the bytes of each file of a cache that is not cut short."""
    return {array_file: 2 * math.prod(info.shape), _marks(array_file): _num_chunks(info)}


def _done(array_file: Path, info: _Info) -> NDArray[np.uint8]:
    """Returns a byte for each chunk, 1 if its rows are there."""
    return np.fromfile(_marks(array_file), dtype=np.uint8, count=_num_chunks(info))


def _encode(
    source: Source,
    role: str,
    encode: Callable[[Tensor], Tensor],
    positions: range,
    image_px: int,
    shape: tuple[int, ...] | None,
) -> NDArray[np.float16]:
    """Returns the rows of some positions, of NaN where a picture cannot be read."""
    pixels: dict[int, Tensor] = {}
    reason = ""
    for row, position in enumerate(positions):
        try:
            pixels[row] = read_pixels(source.read(position)[1], role, image_px)
        except (ValueError, OSError) as error:
            reason = str(error)
    if not pixels:
        if shape is None:
            raise _NoPictureError(f"no picture {role!r} of {source.name} can be read: {reason}")
        return np.full((len(positions), *shape), np.nan, dtype=np.float16)
    features = encode(torch.stack(list(pixels.values()))).to("cpu", torch.float16).numpy()
    if not np.isfinite(features).all():
        raise UsageError(
            f"image features of {source.name}/{role} are beyond half precision; train without a "
            "feature cache (data.feature_cache=null)"
        )
    rows = np.full((len(positions), *features.shape[1:]), np.nan, dtype=np.float16)
    rows[list(pixels)] = features
    return rows


def _files(folder: Path, source: str, role: str) -> tuple[Path, Path]:
    return folder / f"{source}.{role}.f16", folder / f"{source}.{role}.json"


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Holds a lock that the system frees when the process ends, however it ends."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that holds {lock}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_info(array_file: Path, info_file: Path) -> _Info | None:
    """Returns what a cache says of itself, or None unless there is an array of that size."""
    try:
        stored = json.loads(info_file.read_text(encoding="utf-8"))
        info = _Info(
            fingerprint=stored["fingerprint"],
            data=stored["data"],
            shape=tuple(stored["shape"]),
            chunk=stored["chunk"],
        )
        sizes = _sizes(array_file, info)
        is_whole = all(file.stat().st_size == size for file, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None
    return info if is_whole else None


def _write_info(file: Path, info: _Info) -> None:
    write_atomic(file, json.dumps(dataclasses.asdict(info)))
