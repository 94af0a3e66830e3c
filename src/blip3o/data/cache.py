"""A cache of frozen image features: computed once, read by position, refused when stale.

One file a source and picture role, float16 [records, N, C], with a JSON beside it that holds the
fingerprint of what computed it. Building is resumable: finished rows are counted in the JSON.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.log import progress
from blip3o.data.sources import Source
from blip3o.imaging.load import open_image
from blip3o.imaging.pixels import to_pixels


class FeatureCache:
    """Cached features of several sources and roles.

    Args:
        folder: where the files are.
        fingerprint: what must have computed them.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self._arrays: dict[tuple[str, str], np.ndarray] = {}

    def get(self, source: str, role: str, position: int) -> Tensor:
        """Returns the features [N, C] of one picture, float16.

        Args:
            source: name of the data source.
            role: which picture of the record.
            position: the record's place in its source.

        Raises:
            UsageError: if the cache is missing, unfinished or stale.
        """
        if (source, role) not in self._arrays:
            self._arrays[source, role] = self._open(source, role)
        return torch.from_numpy(self._arrays[source, role][position].copy())

    def is_complete(self, source: str, role: str) -> bool:
        """Returns whether a role of a source is cached whole and fresh."""
        try:
            self._open(source, role)
        except UsageError:
            return False
        return True

    def _open(self, source: str, role: str) -> np.ndarray:
        array_file, info_file = _files(self.folder, source, role)
        try:
            info = json.loads(info_file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"no feature cache of {source}/{role} in {self.folder}") from error
        if info["fingerprint"] != self.fingerprint:
            raise UsageError(
                f"the feature cache {array_file} was made by another image encoder; delete it"
            )
        if info["done"] < info["shape"][0]:
            raise UsageError(f"the feature cache {array_file} is unfinished; build it again")
        return np.memmap(array_file, dtype=np.float16, mode="r", shape=tuple(info["shape"]))


def build_cache(
    source: Source,
    role: str,
    encode: Callable[[Tensor], Tensor],
    folder: Path,
    fingerprint: str,
    *,
    image_px: int,
    batch_size: int = 256,
) -> None:
    """Computes the features of one picture of every record; goes on where it stopped.

    Args:
        source: the records.
        role: which picture of each record.
        encode: pixels [B, 3, P, P] to raw features [B, N, C].
        folder: created if missing.
        fingerprint: identifies encoder, weights and preprocessing.
        image_px: side of the pictures.
        batch_size: pictures at once.

    Raises:
        UsageError: if a picture cannot be read; lint the data first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    array_file, info_file = _files(folder, source.name, role)
    done, array = _resume(array_file, info_file, fingerprint, len(source))
    starts = range(done, len(source), batch_size)
    for start in progress(starts, what=f"features of {source.name}/{role}, batches"):
        positions = range(start, min(start + batch_size, len(source)))
        pixels = [
            to_pixels(open_image(source.read(position)[1][role]), image_px)
            for position in positions
        ]
        features = encode(torch.stack(pixels)).to("cpu", torch.float16).numpy()
        if array is None:
            shape = (len(source), *features.shape[1:])
            array = np.memmap(array_file, dtype=np.float16, mode="w+", shape=shape)
        array[positions.start : positions.stop] = features
        array.flush()
        _write_info(info_file, fingerprint, array.shape, positions.stop)


def _files(folder: Path, source: str, role: str) -> tuple[Path, Path]:
    return folder / f"{source}.{role}.f16", folder / f"{source}.{role}.json"


def _resume(
    array_file: Path, info_file: Path, fingerprint: str, length: int
) -> tuple[int, np.memmap | None]:
    try:
        info = json.loads(info_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0, None
    if info["fingerprint"] != fingerprint or info["shape"][0] != length:
        return 0, None
    array = np.memmap(array_file, dtype=np.float16, mode="r+", shape=tuple(info["shape"]))
    return info["done"], array


def _write_info(file: Path, fingerprint: str, shape: tuple[int, ...], done: int) -> None:
    scratch = file.with_suffix(".tmp")
    info = {"fingerprint": fingerprint, "shape": list(shape), "done": done}
    scratch.write_text(json.dumps(info), encoding="utf-8")
    os.replace(scratch, file)
