"""Builds a cache of frozen image features: computed once, read by position, refused when stale.

Each source and image role has one float16 file [records, N, C]. Further files record the encoder
and the data, the finished chunks of rows, and the hash of each row (see `cache_files`). Processes
share the chunks. An unreadable image leaves a row of NaN, so training meets the same bad sample as
without a cache. `cache_reader` reads the cache.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.files import require_room, write_atomic
from blip3o.core.lock import locked
from blip3o.core.log import progress, say
from blip3o.data.cache_files import (
    HASH_BYTES,
    HASHES,
    CacheFiles,
    CacheInfo,
    LeftOut,
    find_files,
    hash_row,
)
from blip3o.data.cache_reader import FeatureCache
from blip3o.data.images import read_pixels
from blip3o.data.sources import Source

__all__ = ["FeatureCache", "build_cache"]

_PROBES = 16
"""Number of chunks, spread over the source, that are tried before the source is refused."""


class _NoImageError(UsageError):
    """None of the records in a chunk has a readable image."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Features of a chunk, and the records whose image is unreadable."""

    features: NDArray[np.float16]
    left_out: list[LeftOut]


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
    """Computes the features of one image of every record; resumes where it stopped.

    Does nothing if the features exist. Features of another encoder are replaced; features of other
    data are kept. The processes of a run share the work by rank, on one machine or one file system;
    a later run with another number of processes can finish it. If several runs need the same
    features, one computes them and the others wait.

    Args:
        source: the records.
        role: role of the image in each record.
        encode: maps pixels [B, 3, P, P] to raw features [B, N, C].
        folder: folder of the cache; created if missing.
        fingerprint: identifies encoder, weights and preprocessing.
        image_px: side of the images in pixels.
        batch_size: number of images encoded together.
        rank: number of this process.
        world_size: number of processes; the cache is complete when all of them have returned.

    Raises:
        UsageError: if a feature is not finite in half precision, no image is readable, or the
            disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = find_files(folder, source.name, role).array
    wanted = (fingerprint, source.fingerprint())

    def rows_of(positions: range, shape: tuple[int, ...] | None) -> _Rows:
        return _encode(source, role, encode, positions, image_px, shape)

    with locked(name.with_suffix(f".{rank}of{world_size}.lock")), ExitStack() as stack:
        with locked(name.with_suffix(".lock")):
            files = find_files(folder, source.name, role, wanted[1])
            info = _start(source, files, wanted, batch_size, rows_of)
            # Open files now: a run that replaces the cache later creates new files.
            write = stack.enter_context(_writing(files, info))
            done = files.done(info)
        missing = [k for k in range(rank, len(done), world_size) if not done[k]]
        if rank == 0:
            _require_room(files, info, int((done == 0).sum()))
        for number in progress(missing, what=f"features of {source.name}/{role}, batches"):
            write(number, rows_of(info.positions(number), info.shape[1:]))


def _start(
    source: Source,
    files: CacheFiles,
    wanted: tuple[str, str],
    batch_size: int,
    rows_of: Callable[[range, tuple[int, ...] | None], _Rows],
) -> CacheInfo:
    """Returns the info of the existing cache, or creates the files with a first chunk."""
    info = files.read_info()
    if info is not None and (info.fingerprint, info.data) == wanted:
        return info
    if files.stored_info() is not None:
        say(f"the feature cache {files.array} is damaged or of another encoder: computed again")
    files.info.unlink(missing_ok=True)  # first, because it would describe the new array wrongly
    info = CacheInfo(
        fingerprint=wanted[0],
        data=wanted[1],
        shape=(len(source),),
        chunk=batch_size,
        hashes=HASHES,
    )
    number, rows = _first_rows(info, rows_of)
    info = dataclasses.replace(info, shape=(len(source), *rows.features.shape[1:]))
    files.left_out.unlink(missing_ok=True)
    for file in files.sizes(info):
        file.unlink(missing_ok=True)  # creates a new file: a run may still read the old one
    _require_room(files, info, info.num_chunks)
    for file, size in files.sizes(info).items():
        with file.open("wb") as made:
            made.truncate(size)
    with _writing(files, info) as write:
        write(number, rows)
    write_atomic(files.info, json.dumps(dataclasses.asdict(info)))
    return info


def _require_room(files: CacheFiles, info: CacheInfo, num_chunks: int) -> None:
    rows = min(num_chunks * info.chunk, info.shape[0])
    require_room(
        files.array.parent,
        rows * (info.row_bytes + HASH_BYTES),
        f"the features of {rows} images ({files.array.name})",
        "choose a folder on another disk (data.feature_cache=FOLDER), or train without a cache "
        "(data.feature_cache=null)",
    )


def _first_rows(
    info: CacheInfo, rows_of: Callable[[range, tuple[int, ...] | None], _Rows]
) -> tuple[int, _Rows]:
    """Returns number and rows of a chunk with a readable image; the rows give the shape."""
    failed = None
    for number in range(0, info.num_chunks, max(1, info.num_chunks // _PROBES)):
        try:
            return number, rows_of(info.positions(number), None)
        except _NoImageError as error:
            failed = failed or error
    raise failed or UsageError("there are no records to compute features for")


@contextmanager
def _writing(files: CacheFiles, info: CacheInfo) -> Iterator[Callable[[int, _Rows], None]]:
    """Yields a function that writes the rows of a chunk and then marks the chunk as done.

    It writes to files: a full disk would kill a process that writes to mapped memory.
    """
    with ExitStack() as stack:
        rows_file = stack.enter_context(files.array.open("r+b"))
        marks_file = stack.enter_context(files.marks.open("r+b"))
        sums_file = stack.enter_context(files.sums.open("r+b")) if info.hashes else None

        def write(number: int, rows: _Rows) -> None:
            first = number * info.chunk
            if rows.left_out:
                with files.left_out.open("ab", buffering=0) as notes:
                    lines = "".join(json.dumps(note) + "\n" for note in rows.left_out)
                    _write(notes, lines.encode())  # in one call: other processes append as well
            _write_at(rows_file, first * info.row_bytes, rows.features.tobytes())
            if sums_file is not None:
                hashes = b"".join(
                    hash_row(row, info, first + k) for k, row in enumerate(rows.features)
                )
                _write_at(sums_file, first * HASH_BYTES, hashes)
            _write_at(marks_file, number, b"\1")

        yield write


def _write_at(file: BinaryIO, place: int, data: bytes) -> None:
    file.seek(place)
    _write(file, data)


def _write(file: BinaryIO | FileIO, data: bytes) -> None:
    try:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(
            f"cannot write {file.name}: {error.strerror}; free some space and run the same command "
            "again to resume"
        ) from error


def _encode(
    source: Source,
    role: str,
    encode: Callable[[Tensor], Tensor],
    positions: range,
    image_px: int,
    shape: tuple[int, ...] | None,
) -> _Rows:
    """Returns the rows of some positions; NaN for unreadable images."""
    pixels: dict[int, Tensor] = {}
    left_out: list[LeftOut] = []
    for row, position in enumerate(positions):
        key = "?"
        try:
            key, images, _ = source.read(position)
            pixels[row] = read_pixels(images, role, image_px)
        except (ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            left_out.append({"key": key, "position": position, "reason": reason})
    if not pixels:
        if shape is None:
            raise _NoImageError(
                f"no image {role!r} of {source.name} can be read: {left_out[-1]['reason']}"
            )
        empty = np.full((len(positions), *shape), np.nan, dtype=np.float16)
        return _Rows(features=empty, left_out=left_out)
    features = encode(torch.stack(list(pixels.values()))).to("cpu", torch.float16).numpy()
    if not np.isfinite(features).all():
        raise UsageError(
            f"image features of {source.name}/{role} are outside the range of half precision; "
            "train without a feature cache (data.feature_cache=null)"
        )
    rows = np.full((len(positions), *features.shape[1:]), np.nan, dtype=np.float16)
    rows[list(pixels)] = features
    return _Rows(features=rows, left_out=left_out)
