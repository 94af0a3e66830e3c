"""PNG files: removes the optional chunks and reads those that affect the image."""

import dataclasses
import struct
import zlib
from collections.abc import Iterator

from blip3o.imaging.profiles import coded_profile

_MAGIC = b"\x89PNG\r\n\x1a\n"
_MOST_TEXT_BYTES = 1 << 23
"""Largest unpacked size of a profile or a text chunk."""
_OPTIONAL = 0x20
"""Bit of a lowercase letter in the first byte of a chunk's name, which marks optional chunks."""
_COLOR_CHUNKS = {b"sRGB": 1, b"gAMA": 4, b"cHRM": 32}
"""Color chunks that Pillow reads itself, and their lengths in bytes."""
_RAW_EXIF, _XMP = b"Raw profile type exif", b"XML:com.adobe.xmp"


@dataclasses.dataclass(slots=True, kw_only=True)
class PngChunks:
    """The chunks of a PNG file that affect the image.

    Args:
        critical: the critical chunks, unchanged and with their checksums.
        colors: complete color chunks that Pillow reads.
        transparency: the `tRNS` chunk with the transparent colors, at the depth of Pillow's result.
        profile: the ICC profile.
        exif: the EXIF block.
        xmp: the XMP block.
        clear_color: the transparent color of a file with 16-bit colors.
    """

    critical: list[bytes]
    colors: list[bytes]
    transparency: bytes | None = None
    profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    clear_color: tuple[int, ...] | None = None


def stripped_png(chunks: PngChunks) -> bytes:
    """Returns a PNG file with only the chunks that decoding needs."""
    head, rest = chunks.critical[:1], chunks.critical[1:]
    tables = [one for one in rest if one[4:8] == b"PLTE"]
    others = [one for one in rest if one[4:8] != b"PLTE"]
    clear = [] if chunks.transparency is None else [chunks.transparency]
    return b"".join([_MAGIC, *head, *chunks.colors, *tables, *clear, *others])


def png_chunks(data: bytes) -> PngChunks:
    """Returns the chunks of a PNG file that affect the image.

    Args:
        data: the file. A truncated critical chunk is kept, so that the decoder reports it. Optional
            chunks that are damaged or misplaced are ignored.

    Raises:
        ValueError: if the file does not begin with a header.
    """
    chunks = PngChunks(critical=[], colors=[])
    coded: bytes | None = None
    seen: set[bytes] = set()
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise ValueError("no header")
    depth, color = data[24], data[25]
    num_colors = 0
    for kind, body, whole in _chunks(data):
        if not kind[0] & _OPTIONAL:
            chunks.critical.append(whole)
            num_colors = len(body) // 3 if kind == b"PLTE" else num_colors
            seen.add(kind)
            continue
        is_early = b"IDAT" not in seen
        if kind in seen or not _has_checksum(kind, body, whole):
            continue
        if kind in {b"eXIf", b"iCCP", b"cICP", b"tRNS", *_COLOR_CHUNKS}:
            seen.add(kind)
        if kind == b"eXIf":
            chunks.exif = body
        elif kind in {b"tEXt", b"zTXt", b"iTXt"}:
            _read_text(chunks, kind, body)
        elif kind == b"iCCP" and is_early:
            _, _, packed = body.partition(b"\0")
            chunks.profile = _unpacked(packed[1:]) if packed[:1] == b"\0" else None
        elif kind == b"cICP" and is_early:
            coded = coded_profile(body)
        elif kind in _COLOR_CHUNKS and is_early and len(body) == _COLOR_CHUNKS[kind]:
            chunks.colors.append(whole)
        elif kind == b"tRNS" and is_early:
            _read_transparency(chunks, body, depth, color, num_colors)
    if coded is not None:  # has priority over all other color chunks
        chunks.profile, chunks.colors = coded or None, []
    return chunks


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yields the name, the content and all bytes of each chunk up to the end chunk."""
    at = len(_MAGIC)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data) and kind[0] & _OPTIONAL:
            return  # a truncated optional chunk; the decoder checks the image itself
        yield kind, data[at + 8 : end - 4], data[at:end]
        if kind == b"IEND":
            return
        at = end


def _has_checksum(kind: bytes, body: bytes, whole: bytes) -> bool:
    return zlib.crc32(kind + body) == int.from_bytes(whole[-4:], "big")


def _unpacked(packed: bytes) -> bytes | None:
    """Returns decompressed bytes, or None if they are damaged or too many."""
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(packed, _MOST_TEXT_BYTES)
    except zlib.error:
        return None
    return None if unpacker.unconsumed_tail else data


def _read_text(chunks: PngChunks, kind: bytes, body: bytes) -> None:
    """Stores a text chunk that may hold an orientation."""
    key, _, text = body.partition(b"\0")
    if key not in {_RAW_EXIF, _XMP}:
        return
    value: bytes | None = text
    if kind == b"zTXt":
        value = _unpacked(text[1:])
    elif kind == b"iTXt":
        value = text[2:].split(b"\0", 2)[-1]
        value = _unpacked(value) if text[:1] == b"\1" else value
    if value is None:
        return
    if key == _XMP:
        chunks.xmp = chunks.xmp or value
    elif chunks.exif is None:
        try:  # ImageMagick writes a name, a length, and hexadecimal lines
            chunks.exif = bytes.fromhex("".join(value.decode("latin-1").split("\n")[3:]))
        except ValueError:
            return


def _read_transparency(
    chunks: PngChunks, body: bytes, depth: int, color: int, num_colors: int
) -> None:
    """Stores the transparent colors, at the depth to which Pillow decodes."""
    mask = (1 << depth) - 1
    if color == 3 and body:
        chunks.transparency = _chunk(b"tRNS", body[: num_colors or 256])
    elif color == 0 and len(body) == 2:
        level = int.from_bytes(body, "big") & mask
        # Pillow scales 2 and 4 bits to 0..255 and expects the transparent level on that scale.
        if 1 < depth < 8:
            level = level * 255 // mask
        chunks.transparency = _chunk(b"tRNS", level.to_bytes(2, "big"))
    elif color == 2 and len(body) == 6:
        levels = tuple(level & mask for level in struct.unpack(">3H", body))
        if depth == 16:
            chunks.clear_color = levels
        else:
            chunks.transparency = _chunk(b"tRNS", struct.pack(">3H", *levels))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
