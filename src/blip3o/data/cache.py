"""Builds a cache of frozen image features: computed once, read by position, never of other data.

The unit of work is a shard of a source, whose features become one file (see `cache_files`). Any
number of processes may work at the same time. In a folder each takes a shard that nobody holds; a
store has no locks, so there each takes every N-th shard. The bytes of a file depend neither on
their number nor on their ends. An unreadable image leaves a row of NaN and a note, so training
meets the same bad sample as without a cache. `cache_reader` reads the cache.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blip3o.core.errors import UsageError, reason_of
from blip3o.core.files import require_room
from blip3o.core.lock import HeldError
from blip3o.core.log import progress
from blip3o.core.shard import WHOLE, Shard
from blip3o.data.cache_files import CacheFiles, LeftOut, row_bytes
from blip3o.data.cache_reader import FeatureCache
from blip3o.data.images import read_pixels
from blip3o.data.sources import Source
from blip3o.data.sources.files import REMOTE_READS

__all__ = ["FeatureCache", "build_cache"]

_PROBES = 4096
"""Number of records, spread over the source, that are tried before the source is refused."""


def build_cache(
    cache: FeatureCache,
    source: Source,
    role: str,
    encode: Callable[[Tensor], Tensor],
    *,
    image_px: int,
    batch_size: int = 256,
    shard: Shard = WHOLE,
) -> None:
    """Computes the features of one image of every record that are missing.

    A killed process loses the shard that it was working on. A later call, with any number of
    processes, computes the rest.

    Args:
        cache: the cache; its folder is created if missing.
        source: the records.
        role: role of the image in each record.
        encode: maps pixels [B, 3, P, P] to raw features [B, N, C].
        image_px: side of the images in pixels.
        batch_size: number of images encoded together.
        shard: the part of the source's shards that this process does; the cache is complete when
            all parts are done.

    Raises:
        UsageError: if a feature is not finite in half precision, no image is readable, the disk is
            full, or the cache is of an older version.
    """
    files = cache.files(source, role)
    missing = files.missing()
    mine = [number for number in missing if number % shard.count == shard.number - 1]
    if not mine:
        return
    work = _Work(source, role, encode, image_px, batch_size)
    work.check(cache, files, missing)
    total = sum(-(-files.lengths[number] // batch_size) for number in mine)
    for _ in progress(work.run(files, mine), total=total, what=f"features of {work.what}, batches"):
        pass


class _Work:
    """The computation of the features of a source and role; the arguments of `build_cache`."""

    def __init__(
        self,
        source: Source,
        role: str,
        encode: Callable[[Tensor], Tensor],
        image_px: int,
        batch_size: int,
    ) -> None:
        self._source = source
        self._role = role
        self._encode = encode
        self._image_px = image_px
        self._batch_size = batch_size
        self.what = f"{source.name}/{role}"
        self._shape = tuple(self._features([self._first_image()]).shape[1:])

    def check(self, cache: FeatureCache, files: CacheFiles, missing: list[int]) -> None:
        """Checks that the features of the missing shards can be stored."""
        if cache.is_remote:
            return
        folder = Path(cache.folder)
        older = folder / f"{self._source.name}.{self._role}.f16"
        if older.exists():
            raise UsageError(
                f"{older} is a feature cache of an older version, which is no longer read: delete "
                f"{older.with_suffix('')}.*, and the features are written again"
            )
        rows = sum(files.lengths[number] for number in missing)
        require_room(
            folder,
            rows * row_bytes(self._shape),
            f"the features of {rows} images ({files.folder})",
            "choose a folder on another disk (data.feature_cache=FOLDER), or train without a cache "
            "(data.feature_cache=null)",
        )

    def run(self, files: CacheFiles, numbers: list[int]) -> Iterator[None]:
        """Writes the features of some shards; yields after each batch."""
        held: list[int] = []
        for number in numbers:
            try:
                yield from self._run_shard(files, number, "computes these features")
            except HeldError:
                held.append(number)
        for number in held:  # wait for the others, and do what they did not finish
            yield from self._run_shard(files, number, None)

    def _run_shard(self, files: CacheFiles, number: int, refusal: str | None) -> Iterator[None]:
        end, length = files.ends[number], files.lengths[number]
        with files.claimed(number, refusal):
            if files.exists(number):
                return
            try:
                with files.writing(number, self._shape) as write:
                    for row in range(0, length, self._batch_size):
                        rows = range(row, min(row + self._batch_size, length))
                        write(*self._rows(rows, end - length))
                        yield
            except OSError as error:
                raise UsageError(
                    f"cannot write {files.path(number)}: {reason_of(error)}; free some space and "
                    "run the same command again to resume"
                ) from error

    def _rows(self, rows: range, start: int) -> tuple[NDArray[np.float16], list[LeftOut]]:
        """Returns the features of some rows of the shard that begins at `start`, and notes.

        The features of unreadable images are NaN.
        """
        found: list[Tensor | LeftOut]
        positions = [start + row for row in rows]
        if self._source.is_remote:
            with ThreadPoolExecutor(REMOTE_READS) as pool:
                found = list(pool.map(self._read, rows, positions))
        else:
            found = list(map(self._read, rows, positions))
        pixels = [one for one in found if isinstance(one, Tensor)]
        features = np.full((len(rows), *self._shape), np.nan, dtype=np.float16)
        if pixels:
            features[[isinstance(one, Tensor) for one in found]] = self._features(pixels)
        return features, [one for one in found if not isinstance(one, Tensor)]

    def _read(self, row: int, position: int) -> Tensor | LeftOut:
        key = "?"
        try:
            key, images, _ = self._source.read(position)
            return read_pixels(images, self._role, self._image_px)
        except (ValueError, OSError) as error:
            return LeftOut(row=row, key=key, reason=" ".join(str(error).split()))

    def _features(self, pixels: list[Tensor]) -> NDArray[np.float16]:
        features = self._encode(torch.stack(pixels)).to("cpu", torch.float16).numpy()
        if not np.isfinite(features).all():
            raise UsageError(
                f"image features of {self.what} are outside the range of half precision; train "
                "without a feature cache (data.feature_cache=null)"
            )
        return features

    def _first_image(self) -> Tensor:
        """Returns a readable image of the source; its features give the shape of all."""
        reason = "there are no records"
        for position in range(0, len(self._source), max(1, len(self._source) // _PROBES)):
            found = self._read(0, position)
            if isinstance(found, Tensor):
                return found
            reason = found["reason"]
        raise UsageError(f"no image {self._role!r} of {self._source.name} can be read: {reason}")
