"""TIFF files: reads their directory of tags, and rewrites it with only the tags of the image.

Pillow decodes the common layouts from the rewritten file; `tiff_deep` decodes the layouts that
Pillow refuses or misreads. Files are not trusted, so all sizes are checked.
"""

import dataclasses
import math
import struct
from collections.abc import Mapping, Sequence

import numpy as np

from blip3o.core.errors import UsageError

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS = 273, 274, 277, 278, 279
PLANAR, PREDICTOR, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = 284, 317, 322, 323, 324, 325
SUB_IFDS, EXTRA_SAMPLES, SAMPLE_FORMAT, LEAST_SAMPLE, MOST_SAMPLE = 330, 338, 339, 340, 341
COLOR_MAP, ICC_PROFILE, DNG_VERSION = 320, 34675, 50706

_PIECES = (STRIP_OFFSETS, STRIP_COUNTS, TILE_OFFSETS, TILE_COUNTS)
_KEPT = {
    *range(WIDTH, PHOTOMETRIC + 1),
    *(266, *_PIECES[:2], ORIENTATION, SAMPLES, ROWS_PER_STRIP, PLANAR, 292, 293, PREDICTOR),
    *(TILE_WIDTH, TILE_HEIGHT, *_PIECES[2:], 332, EXTRA_SAMPLES, SAMPLE_FORMAT, 347),
    *(COLOR_MAP, 529, 530, 531, 532, ICC_PROFILE),
}
"""Tags that decoding needs. All others are metadata, and Pillow fails if they are damaged."""
_MOST_PIECES = 300_000
_MOST_TAG_BYTES = {**dict.fromkeys(_PIECES, 1 << 25), 347: 1 << 16, ICC_PROFILE: 1 << 23}
_NUMBERS = {
    **{1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 11: "f4", 12: "f8", 13: "u4"},
    **{16: "u8", 17: "i8", 18: "u8"},
}
"""NumPy's names of the numeric types; all other types are text and bytes."""
_RATIOS = (5, 10)


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One tag of a directory: the type of its values, their count, and where they start."""

    kind: int
    count: int
    start: int

    @property
    def size(self) -> int:
        """Length of its values in bytes."""
        if self.kind in _RATIOS:
            return self.count * 8
        return self.count * np.dtype(_NUMBERS.get(self.kind, "u1")).itemsize


class Directory:
    """The first directory of a TIFF or BigTIFF file.

    Args:
        data: the file.

    Attributes:
        data: the file.
        order: "<" for little-endian numbers, ">" for big-endian ones.
        entries: the tags, except those whose values lie outside the file.
        is_whole: whether the file holds all tags that decoding needs.

    Raises:
        ValueError: if the file has no directory.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
        version = int.from_bytes(data[2:4], "little" if self.order == "<" else "big")
        if not self.order or version not in {42, 43}:
            raise ValueError("no TIFF header")
        is_big = version == 43
        self.entries: dict[int, Entry] = {}
        self.is_whole = True
        word, head = ("Q", 8) if is_big else ("I", 4)
        try:
            (start,) = struct.unpack_from(self.order + word, data, head)
            (count,) = struct.unpack_from(self.order + ("Q" if is_big else "H"), data, start)
            step, start = (20, start + 8) if is_big else (12, start + 2)
            for at in range(start, start + min(count, 65535) * step, step):
                self._add(at, word, step)
        except struct.error as error:
            self.is_whole = False
            if not self.entries:
                raise ValueError("no TIFF directory") from error

    def _add(self, at: int, word: str, step: int) -> None:
        tag, kind, number = struct.unpack_from(f"{self.order}HH{word}", self.data, at)
        inline = struct.calcsize(word)
        entry = Entry(kind, number, at + step - inline)
        if entry.size > inline:
            (start,) = struct.unpack_from(self.order + word, self.data, at + step - inline)
            entry = dataclasses.replace(entry, start=start)
        if entry.start + entry.size > len(self.data):
            self.is_whole = self.is_whole and tag not in _KEPT
        elif tag not in self.entries:
            self.entries[tag] = entry

    def values(self, tag: int, most: int = 16) -> list[float]:
        """Returns the numbers of a tag, at most `most`; none if the tag is missing."""
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in _NUMBERS:
            return []
        kind = np.dtype(self.order + _NUMBERS[entry.kind])
        return np.frombuffer(self.data, kind, min(entry.count, most), entry.start).tolist()

    def number(self, tag: int, default: int) -> int:
        """Returns the first number of a tag as an integer, or `default` if there is none."""
        values = self.values(tag, 1)
        return int(values[0]) if values and math.isfinite(values[0]) else default


def read_directory(data: bytes) -> Directory | None:
    """Returns the first directory of a TIFF file, or None if it cannot be read."""
    try:
        return Directory(data)
    except ValueError:
        return None


def stripped_tiff(tags: Directory, changes: Mapping[int, Sequence[int]] | None = None) -> bytes:
    """Returns a TIFF file of only the first image, with the tags that decoding needs.

    A BigTIFF file is converted to TIFF, because Pillow reads only some BigTIFF files.

    Args:
        tags: the directory.
        changes: new values of tags; an empty list removes a tag.

    Raises:
        UsageError: if the directory lists too few or far too many strips or tiles, or if the image
            has no pixels.
    """
    changed = {**_colors(tags), **_pieces(tags), **(changes or {})}
    order, tail, lines = tags.order, bytearray(), []
    base = len(tags.data) + len(tags.data) % 2
    for tag in sorted((tags.entries.keys() & _KEPT) | changed.keys()):
        if tag in changed:
            kind, count = 4, len(changed[tag])
            raw = np.array(changed[tag], f"{order}u4").tobytes()
        else:
            entry = tags.entries[tag]
            if entry.size > _MOST_TAG_BYTES.get(tag, 4096):
                continue
            kind, count = entry.kind, entry.count
            raw = tags.data[entry.start : entry.start + entry.size]
            if kind in {16, 18}:  # 64-bit integers exist only in BigTIFF
                kind, raw = 4, np.frombuffer(raw, f"{order}u8").astype(f"{order}u4").tobytes()
        if not count:
            continue
        place = raw.ljust(4, b"\0")
        if len(raw) > 4:
            place = struct.pack(order + "I", base + len(tail))
            tail += raw + b"\0" * (len(raw) % 2)
        lines.append(struct.pack(f"{order}HHI", tag, kind, count) + place)
    head = tags.data[:2] + struct.pack(order + "HI", 42, base + len(tail))
    body = tags.data[len(head) :] + b"\0" * (len(tags.data) % 2)
    return b"".join((head, body, tail, struct.pack(order + "H", len(lines)), *lines, b"\0" * 4))


def _colors(tags: Directory) -> dict[int, Sequence[int]]:
    """Returns the palette scaled to 16 bits if an old program wrote it with 8 bits."""
    levels = tags.values(COLOR_MAP, 3 << 8)
    if not levels or max(levels) > 255:
        return {}
    return {COLOR_MAP: [int(level) * 257 for level in levels]}


def _pieces(tags: Directory) -> dict[int, Sequence[int]]:
    """Returns shortened lists of strips or tiles if they are longer than the image needs."""
    width, height = tags.number(WIDTH, 0), tags.number(HEIGHT, 0)
    if min(width, height) < 1 and tags.is_whole:
        raise UsageError(f"a TIFF image of {width} x {height} pixels")
    is_tiled = TILE_OFFSETS in tags.entries and STRIP_OFFSETS not in tags.entries
    if is_tiled:
        across, down = tags.number(TILE_WIDTH, 0), tags.number(TILE_HEIGHT, 0)
        keys = (TILE_OFFSETS, TILE_COUNTS)
    else:
        across, down = width, min(tags.number(ROWS_PER_STRIP, height), height)
        keys = (STRIP_OFFSETS, STRIP_COUNTS)
    if min(width, height, across, down) < 1 or keys[0] not in tags.entries:
        return {}
    planes = tags.number(SAMPLES, 1) if tags.number(PLANAR, 1) == 2 else 1
    count = -(-width // across) * -(-height // down) * planes
    listed = tags.entries[keys[0]].count
    if count > _MOST_PIECES:
        raise UsageError(f"a TIFF of {count} strips or tiles; save it again, as TIFF or PNG")
    if listed < count:
        raise UsageError(f"a damaged or truncated TIFF: it lists {listed} of {count} strips")
    starts, sizes = ([int(one) for one in tags.values(key, count)] for key in keys)
    _check_ends(tags, starts, sizes, across=across, down=down if is_tiled else 0)
    return {} if listed == count else dict(zip(keys, (starts, sizes), strict=True))


def _check_ends(
    tags: Directory, starts: list[int], sizes: list[int], *, across: int, down: int
) -> None:
    """Checks that the strips or tiles lie within the file, because a new directory follows it.

    Args:
        tags: the directory.
        starts: offsets of the strips or tiles.
        sizes: their stated sizes in bytes; for uncompressed images, those of their pixels count.
        across: width of a strip or tile.
        down: height of a tile; 0 for strips, of which the last may be lower.

    Raises:
        UsageError: if one extends beyond the end of the file.
    """
    if tags.number(COMPRESSION, 1) == 1 and tags.number(PHOTOMETRIC, 0) != 6:
        bits = [int(one) for one in tags.values(BITS)] or [1]
        samples = 1 if tags.number(PLANAR, 1) == 2 else tags.number(SAMPLES, 1)
        row = -(-across * (sum(bits) if len(bits) == samples else bits[0] * samples) // 8)
        height = tags.number(HEIGHT, 0)
        rows = down or min(tags.number(ROWS_PER_STRIP, height), height)
        sizes = [rows * row] * len(starts)
        per_plane = -(-height // rows)
        if not down and height % rows:
            for last in range(per_plane - 1, len(sizes), per_plane):
                sizes[last] = height % rows * row
    if any(start + size > len(tags.data) for start, size in zip(starts, sizes, strict=False)):
        raise UsageError("a damaged or truncated TIFF: parts of the image lie beyond its end")


def raw_photo(data: bytes) -> str | None:
    """Returns the kind of a camera's raw photo, or None for other TIFF files.

    The first image of a raw photo is a small preview or an undeveloped mosaic.
    """
    if data[8:10] == b"CR":
        return "a camera's raw photo (CR2)"
    tags = read_directory(data)
    if tags is None:
        return None
    if DNG_VERSION in tags.entries:
        return "a camera's raw photo (DNG)"
    if tags.number(PHOTOMETRIC, 0) in {32803, 34892}:
        return "a camera's raw photo"
    if tags.number(254, 0) & 1 and SUB_IFDS in tags.entries:
        return "a camera's raw photo (as NEF or ARW) or a TIFF that begins with its preview"
    return None


def unread_layout(data: bytes) -> str | None:
    """Returns a description of the layout of a TIFF file; None if its directory is damaged."""
    tags = read_directory(data)
    if tags is None or not tags.is_whole:
        return None
    bits = [int(one) for one in tags.values(BITS)] or [1]
    samples = tags.number(SAMPLES, len(bits))
    kinds = {1: "unsigned", 2: "signed", 3: "floating point", 5: "complex", 6: "complex"}
    kind = kinds.get(tags.number(SAMPLE_FORMAT, 1), "untyped")
    return (
        f"a TIFF of {samples} x {bits[0]}-bit {kind} numbers per pixel (photometric "
        f"{tags.number(PHOTOMETRIC, 0)}, compression {tags.number(COMPRESSION, 1)})"
    )
