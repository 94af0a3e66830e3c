"""Decodes TIFF layouts that Pillow refuses or misreads: 10 to 32 bits, signed, with alpha and more.

Pillow only decompresses the file, whose tags are rewritten so that each byte is a grey pixel. This
module converts the bytes to numbers and scales them by the range that the TIFF file states.
"""

import dataclasses
import io
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.imaging import tiff
from blip3o.imaging.tiff import Directory

_BYTEWISE = (1, 5, 8, 32773, 32946, 34925, 50000)
"""Compressions of bytes: none, LZW, PackBits, Deflate (two numbers), LZMA, Zstandard."""
_CIELAB, _ICCLAB = 8, 9
_MODES = {0: "L", 1: "L", 2: "RGB", _CIELAB: "LAB", _ICCLAB: "LAB"}
"""Pillow's mode for each value of the photometric tag."""
_BLOCK_SAMPLES = 1 << 20
_FILL_ORDER = 266


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The range of numbers from black to white.

    Args:
        bits: bits per sample.
        is_signed: whether samples may be negative.
        low: the number of black, or of white if `is_inverted`.
        high: the number of white, or of black if `is_inverted`.
        is_inverted: whether the lowest number is white.
    """

    bits: int
    is_signed: bool
    low: float
    high: float
    is_inverted: bool

    def levels(self, values: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Returns numbers as levels from 0 to 255.

        Raises:
            UsageError: if numbers are negative, but the stated range does not begin below zero.
        """
        if self.is_signed and self.low >= 0 and values.size and values.min() < 0:
            raise UsageError(
                "an image of signed numbers, some of them negative; save it with 8 or 16 unsigned "
                "bits"
            )
        scaled = (values.astype(np.float64) - self.low) * (255 / (self.high - self.low))
        scaled = np.clip(np.rint(scaled), 0, 255)
        return (255 - scaled if self.is_inverted else scaled).astype(np.uint8)


def scale_of(values_of: Callable[[int], Sequence[float]]) -> Scale:
    """Returns the range of numbers that a TIFF file states, or the range of its bits.

    SMinSampleValue and SMaxSampleValue state a range. Without them, zero is black even for signed
    numbers.

    Args:
        values_of: returns the numbers of a tag; none if the tag is missing.
    """

    def first(tag: int, default: float) -> float:
        values = values_of(tag)
        return values[0] if values and math.isfinite(values[0]) else default

    bits, is_signed = int(first(tiff.BITS, 1)), first(tiff.SAMPLE_FORMAT, 1) == 2
    low, high = first(tiff.LEAST_SAMPLE, 0), first(tiff.MOST_SAMPLE, -math.inf)
    if high <= low:
        low, high = 0, (1 << (bits - is_signed)) - 1
    is_inverted = first(tiff.PHOTOMETRIC, 0) == 0
    return Scale(bits=bits, is_signed=is_signed, low=low, high=high, is_inverted=is_inverted)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeepTiff:
    """An image of a layout that Pillow refuses or misreads.

    Args:
        tags: the directory of the file.
        size: width and height, before the orientation is applied.
        mode: mode of the result: L, RGB or LAB; LA or RGBA with alpha.
        num_samples: numbers per pixel: colors, then alpha and others.
        taken: indices of the numbers that are read: the colors, then alpha if there is one.
        is_multiplied: whether the colors are multiplied by alpha.
        scale: the range of the numbers.
    """

    tags: Directory
    size: tuple[int, int]
    mode: str
    num_samples: int
    taken: tuple[int, ...]
    is_multiplied: bool
    scale: Scale

    def read(self) -> Image.Image:
        """Returns the image with 8 bits, not turned by its orientation.

        Raises:
            UsageError: as `Scale.levels`.
            OSError: if the file is damaged or truncated; decoders may raise other errors as well.
        """
        width, height = self.size
        pixels = np.empty((height, width, len(self.taken)), np.uint8)
        if self.tags.number(tiff.PLANAR, 1) == 2:
            for place, plane in enumerate(self.taken):
                for rows, values in self._blocks(1, plane):
                    pixels[rows, :, place] = self._levels(values[..., 0], plane)
        else:
            for rows, values in self._blocks(self.num_samples, None):
                for place, sample in enumerate(self.taken):
                    pixels[rows, :, place] = self._levels(values[..., sample], sample)
        if self.is_multiplied:
            pixels = _divided(pixels)
        if self.mode == "LAB":
            pixels[..., 1:] ^= 128  # Pillow expects signed numbers here
        image = Image.frombuffer(self.mode, self.size, pixels, "raw", self.mode, 0, 1)
        if (profile := self.tags.entries.get(tiff.ICC_PROFILE)) is not None:
            end = profile.start + profile.size
            image.info["icc_profile"] = self.tags.data[profile.start : end]
        return image

    def _levels(self, values: NDArray[np.integer], sample: int) -> NDArray[np.uint8]:
        """Returns the numbers of one sample as levels from 0 to 255."""
        bits = self.scale.bits
        if self.mode == "LAB" and sample > 0:
            is_signed = self.tags.number(tiff.PHOTOMETRIC, 0) == _CIELAB
            # A color of 16 bits is 256 times, not 257 times, the same color of 8 bits.
            return ((values >> (bits - 8)) ^ (is_signed << 7)).astype(np.uint8)
        levels = self.scale.levels(values)
        is_alpha = self.mode.endswith("A") and sample == self.taken[-1]
        # Zero may mean white, but never opaque.
        return 255 - levels if is_alpha and self.scale.is_inverted else levels

    def _blocks(
        self, samples: int, plane: int | None
    ) -> Iterator[tuple[slice, NDArray[np.integer]]]:
        """Yields the rows of each block and their numbers [rows, width, samples]."""
        width, height = self.size
        raw = self._bytes(samples, plane)
        step = max(1, _BLOCK_SAMPLES // (width * samples))
        for top in range(0, height, step):
            rows = slice(top, min(top + step, height))
            values = self._numbers(raw[rows], width * samples)
            yield rows, self._undone(values.reshape(-1, width, samples))

    def _bytes(self, samples: int, plane: int | None) -> NDArray[np.uint8]:
        """Returns the decompressed bytes of all rows."""
        tags, bits = self.tags, samples * self.scale.bits
        changes: dict[int, Sequence[int]] = {
            tiff.WIDTH: [-(-self.size[0] * bits // 8)],
            tiff.BITS: [8],
            tiff.SAMPLES: [1],
            tiff.SAMPLE_FORMAT: [1],
            tiff.PHOTOMETRIC: [1],
            tiff.PLANAR: [1],
            tiff.PREDICTOR: [1],
            tiff.ORIENTATION: [1],
            tiff.EXTRA_SAMPLES: [],
        }
        if tiff.TILE_WIDTH in tags.entries:
            changes[tiff.TILE_WIDTH] = [-(-tags.number(tiff.TILE_WIDTH, 1) * bits // 8)]
        if plane is not None:
            for tag in (tiff.STRIP_OFFSETS, tiff.STRIP_COUNTS, tiff.TILE_OFFSETS, tiff.TILE_COUNTS):
                if tag in tags.entries:
                    each = tags.entries[tag].count // self.num_samples
                    listed = tags.values(tag, each * (plane + 1))
                    changes[tag] = [int(one) for one in listed[each * plane :]]
        data = tiff.stripped_tiff(tags, changes)
        with Image.open(io.BytesIO(data), formats=("TIFF",)) as image:
            return np.asarray(image)

    def _numbers(self, rows: NDArray[np.uint8], count: int) -> NDArray[np.integer]:
        """Returns the numbers [rows, count] in packed rows."""
        bits = self.scale.bits
        kind = "i" if self.scale.is_signed else "u"
        if bits in {8, 16, 32}:
            return np.ascontiguousarray(rows).view(f"{self.tags.order}{kind}{bits // 8}")
        # The highest bit comes first in every file; the byte order applies only to whole bytes.
        if bits == 24 and self.tags.order == "<":
            rows = rows.reshape(len(rows), -1, 3)[..., ::-1].reshape(len(rows), -1)
        unpacked = np.unpackbits(rows, axis=1, count=count * bits).reshape(len(rows), count, bits)
        values = np.zeros(unpacked.shape[:2], np.int64)
        for place in range(bits):
            values = (values << 1) | unpacked[..., place]
        if self.scale.is_signed:
            values -= (values >> (bits - 1)) << bits
        return values

    def _undone(self, values: NDArray[np.integer]) -> NDArray[np.integer]:
        """Returns the numbers, decoded if the file holds differences to the left neighbors."""
        if self.tags.number(tiff.PREDICTOR, 1) != 2:
            return values
        width = self.size[0]
        step = self.tags.number(tiff.TILE_WIDTH, width)  # differences restart at each tile
        pieces = [values[:, at : at + step] for at in range(0, width, step)]
        kind = values.dtype.newbyteorder("=")
        return np.concatenate([np.cumsum(one, axis=1, dtype=kind) for one in pieces], axis=1)


def deep_tiff(tags: Directory) -> DeepTiff | None:
    """Returns the reader of a layout that Pillow refuses or misreads; None for other layouts.

    Args:
        tags: the directory of the file.
    """
    photometric = tags.number(tiff.PHOTOMETRIC, 0)
    bits = [int(one) for one in tags.values(tiff.BITS)] or [1]
    mode = _MODES.get(photometric, "")
    num_samples = tags.number(tiff.SAMPLES, len(bits))
    num_others = num_samples - len(mode)
    formats = set(tags.values(tiff.SAMPLE_FORMAT)) or {1}
    compression = tags.number(tiff.COMPRESSION, 1)
    predictor = tags.number(tiff.PREDICTOR, 1) if compression != 1 else 1
    size = tags.number(tiff.WIDTH, 0), tags.number(tiff.HEIGHT, 0)
    extra = [int(one) for one in tags.values(tiff.EXTRA_SAMPLES)] or [2] * num_others
    alphas = [place for place, kind in enumerate(extra[:num_others]) if kind in {1, 2}]
    if (
        not mode
        or not 0 <= num_others <= 16 - len(mode)
        or len(set(bits)) > 1
        or not 2 <= bits[0] <= 32
        or bits[0] in {2, 4}
        or formats not in ({1}, {2})
        or compression not in _BYTEWISE
        or (predictor != 1 and (predictor != 2 or bits[0] not in {8, 16, 32}))
        or (mode == "LAB" and (alphas or bits[0] not in {8, 16} or formats != {1}))
        or min(size) < 1
        or (formats == {1} and _is_read_by_pillow(tags, mode, bits[0], num_others))
    ):
        return None
    return DeepTiff(
        tags=tags,
        size=size,
        mode={"L": "LA", "RGB": "RGBA"}[mode] if alphas else mode,
        num_samples=num_samples,
        taken=(*range(len(mode)), *(len(mode) + place for place in alphas[:1])),
        is_multiplied=bool(alphas) and extra[alphas[0]] == 1,
        scale=scale_of(tags.values),
    )


def _is_read_by_pillow(tags: Directory, mode: str, bits: int, num_others: int) -> bool:
    """Returns whether Pillow correctly reads this layout of unsigned numbers."""
    if bits == 8:
        return num_others == 0 and tags.number(tiff.PHOTOMETRIC, 0) != _ICCLAB
    is_chunky = tags.number(tiff.PLANAR, 1) == 1 and tags.number(_FILL_ORDER, 1) == 1
    is_known = mode == "RGB" and bits == 16 and is_chunky and num_others <= 1
    return is_known and tiff.MOST_SAMPLE not in tags.entries


def _divided(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns pixels whose colors are divided by alpha."""
    alpha = pixels[..., -1:].astype(np.uint32)
    colors = pixels[..., :-1].astype(np.uint32) * 255 // np.maximum(alpha, 1)
    return np.concatenate([np.minimum(colors, 255), alpha], axis=2).astype(np.uint8)
