"""A cache of frozen image features: computed once, read by position, refused when stale.

One file a source and image role, float16 [records, N, C]; files beside it say which encoder and
which data it is of, which chunks of rows are done, and the hash of each row (`cache_files`).
Processes share the chunks. An image that cannot be read leaves a row of NaN, so that training
meets the same bad sample as it would without a cache. `cache_reader` reads.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.files import write_atomic
from blip3o.core.lock import locked
from blip3o.core.log import progress, say
from blip3o.core.room import require_room
from blip3o.data.cache_files import (
    HASH_BYTES,
    HASHES,
    CacheFiles,
    CacheInfo,
    find_files,
    hash_row,
)
from blip3o.data.cache_reader import FeatureCache
from blip3o.data.images import read_pixels
from blip3o.data.sources import Source

__all__ = ["FeatureCache", "build_cache"]

_PROBES = 16
"""How many chunks, spread over the source, are tried before it is said to have no image."""


class _NoImageError(UsageError):
    """None of some records has an image that can be read."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Features of a chunk, and the records whose image cannot be read."""

    features: NDArray[np.float16]
    left_out: list[dict[str, Any]]


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
    """Computes the features of one image of every record; goes on where it stopped.

    Does nothing if they are there; replaces those of another encoder, and leaves those of other
    data where they are. Several processes of a run share the work by rank, on one machine or on one
    file system, and a run of another number of processes goes on with it. Of several runs that want
    the same features one computes them and the others wait.

    Args:
        source: the records.
        role: which image of each record.
        encode: pixels [B, 3, P, P] to raw features [B, N, C].
        folder: created if missing.
        fingerprint: identifies encoder, weights and preprocessing.
        image_px: side of the images.
        batch_size: images at once.
        rank: which process this is.
        world_size: how many share the work; the cache is whole when all of them have returned.

    Raises:
        UsageError: if features are not finite in half precision, no image can be read, or the
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
            # Opened now: whoever replaces the files later makes new ones, and writes into those.
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
    """Returns the info of the cache that is there, or makes the files with a first chunk."""
    info = files.read_info()
    if info is not None and (info.fingerprint, info.data) == wanted:
        return info
    if files.told() is not None:
        say(f"the feature cache {files.array} is damaged or of another encoder: computed again")
    files.info.unlink(missing_ok=True)  # first, or it would vouch for the new array
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
        file.unlink(missing_ok=True)  # a new file: a run may still be reading the old one
    _require_room(files, info, info.num_chunks)
    for file, size in files.sizes(info).items():
        with file.open("wb") as made:
            made.truncate(size)
    with _writing(files, info) as write:
        write(number, rows)
    _write_info(files.info, info)
    return info


def _require_room(files: CacheFiles, info: CacheInfo, num_chunks: int) -> None:
    rows = min(num_chunks * info.chunk, info.shape[0])
    require_room(
        files.array.parent,
        rows * (info.row_bytes + HASH_BYTES),
        f"the features of {rows} images ({files.array.name})",
        "name a folder on another disk (data.feature_cache=FOLDER), or do without "
        "(data.feature_cache=null)",
    )


def _first_rows(
    info: CacheInfo, rows_of: Callable[[range, tuple[int, ...] | None], _Rows]
) -> tuple[int, _Rows]:
    """Returns the number and the rows of a chunk with an image in it, which show the shape."""
    failed = None
    for number in range(0, info.num_chunks, max(1, info.num_chunks // _PROBES)):
        try:
            return number, rows_of(info.positions(number), None)
        except _NoImageError as error:
            failed = failed or error
    raise failed or UsageError("there is no record to compute features of")


@contextmanager
def _writing(files: CacheFiles, info: CacheInfo) -> Iterator[Callable[[int, _Rows], None]]:
    """Yields a function that writes the rows of a chunk and then marks the chunk as done.

    It writes to files, because a full disk kills a process that writes to mapped memory.
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
                    _write(notes, lines.encode())  # in one piece: other processes append, too
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


def _write(file: Any, data: bytes) -> None:  # noqa: ANN401  (buffered or not)
    try:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(
            f"cannot write {file.name}: {error.strerror}; make room and run the same command "
            "again to go on"
        ) from error


def _encode(
    source: Source,
    role: str,
    encode: Callable[[Tensor], Tensor],
    positions: range,
    image_px: int,
    shape: tuple[int, ...] | None,
) -> _Rows:
    """Returns the rows of some positions, of NaN where an image cannot be read."""
    pixels: dict[int, Tensor] = {}
    left_out: list[dict[str, Any]] = []
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
            f"image features of {source.name}/{role} are beyond half precision; train without a "
            "feature cache (data.feature_cache=null)"
        )
    rows = np.full((len(positions), *features.shape[1:]), np.nan, dtype=np.float16)
    rows[list(pixels)] = features
    return _Rows(features=rows, left_out=left_out)


def _write_info(file: Path, info: CacheInfo) -> None:
    write_atomic(file, json.dumps(dataclasses.asdict(info)))
