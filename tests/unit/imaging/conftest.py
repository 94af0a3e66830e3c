"""Builds image files of layouts that Pillow does not write."""

import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _packed(values: NDArray[np.int64], depth: int) -> bytes:
    """Packs the numbers of a row, highest bit first."""
    if depth % 8 == 0:
        return b"".join(int(one).to_bytes(depth // 8, "big") for one in values.flat)
    bits = (values.reshape(-1, 1) >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


def _png(
    values: NDArray[np.int64] | None,
    depth: int,
    *,
    color: int,
    key: bytes | None = None,
    palette: list[int] | None = None,
    is_interlaced: bool = False,
    size: tuple[int, int] | None = None,
) -> bytes:
    """Returns a PNG of [rows, columns, samples], or of a claimed size without samples."""
    height, width = (1, 1) if values is None else values.shape[:2]
    width, height = size or (width, height)
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, is_interlaced)
    rows = b""
    if values is not None:
        passes = _PASSES if is_interlaced else ((0, 0, 1, 1),)
        for left, top, across, down in passes:
            part = values[top::down, left::across]
            rows += b"".join(b"\0" + _packed(row, depth) for row in part if row.size)
    pieces = [_chunk(b"IHDR", head)]
    pieces += [] if palette is None else [_chunk(b"PLTE", bytes(palette))]
    pieces += [] if key is None else [_chunk(b"tRNS", key)]
    pieces += [_chunk(b"IDAT", zlib.compress(rows)), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def _tiff(
    raw: bytes, tags: dict[int, tuple[str, tuple[float, ...]]], order: str = "<", head: bytes = b""
) -> bytes:
    """Returns a TIFF of one strip of raw data; a tag is a struct letter and its numbers."""
    kinds = {"B": 1, "H": 3, "I": 4, "b": 6, "h": 8, "i": 9, "f": 11, "d": 12}
    mark = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "H", 42)
    start = 8 + len(head)
    tags = {**tags, 273: ("I", (start,)), 279: ("I", (len(raw),))}
    body = head + raw + b"\0" * ((len(head) + len(raw)) % 2)
    lines, extra = b"", b""
    at = 8 + len(body)
    table = at + 2 + 12 * len(tags) + 4
    for tag, (letter, numbers) in sorted(tags.items()):
        content = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        place = content.ljust(4, b"\0")
        if len(content) > 4:
            place = struct.pack(order + "I", table + len(extra))
            extra += content + b"\0" * (len(content) % 2)
        lines += struct.pack(order + "HHI", tag, kinds[letter], len(numbers)) + place
    ifd = struct.pack(order + "H", len(tags)) + lines + b"\0" * 4
    return mark + struct.pack(order + "I", at) + body + ifd + extra


@pytest.fixture
def make_png() -> Callable[..., bytes]:
    """Writes a PNG of numbers [rows, columns, samples] of any depth; see `_png`."""
    return _png


@pytest.fixture
def make_tiff() -> Callable[..., bytes]:
    """Writes a TIFF of raw bytes and tags; see `_tiff`."""
    return _tiff
