"""Strips the metadata of an image file before it is decoded; reads its orientation and colors.

Texts, thumbnails, maker notes and further frames do not change the image, but damage in them can
stop a decoder. This module handles JPEG, GIF, WebP, AVIF and BMP, and calls `png` and `tiff` for
the other two formats. The bytes of the image itself stay unchanged. A file of unknown structure is
returned unchanged; its decoder then reports the fault.
"""

import dataclasses
import re
import struct
from collections.abc import Iterator

from PIL import ExifTags, Image

from blip3o.core.errors import UsageError
from blip3o.imaging import tiff
from blip3o.imaging.kinds import format_of
from blip3o.imaging.png import png_chunks, stripped_png
from blip3o.imaging.profiles import coded_profile
from blip3o.imaging.tiff_deep import DeepTiff, deep_tiff

_MOST_SCANS = 50
"""Most scans of a progressive JPEG. Encoders write 3 to 20; decoding one takes as long as a whole
image."""
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")
_MOST_HEAD_BYTES = 1 << 16
"""Searched bytes of an AVIF file: the description of its colors precedes the image."""
_UNCALIBRATED, _ADOBE_RGB = 0xFFFF, "R03"
"""EXIF color space and interoperability name of Adobe RGB files (DCF 2.0 "optional file")."""
_NONSTANDARD_ADOBE_RGB = 2
"""Nonstandard EXIF color space that some cameras write for Adobe RGB."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stripped:
    """A file without its metadata, and the metadata that affects the look of the image.

    Args:
        data: the stripped file.
        orientation: EXIF or XMP orientation, 1 to 8; None if `data` still holds it.
        profile: the ICC profile; None if there is none or `data` still holds it.
        is_adobe_rgb: whether EXIF states Adobe RGB colors.
        clear_color: the transparent color of a PNG with 16-bit colors.
        deep: the reader of a TIFF that Pillow refuses or misreads.
    """

    data: bytes
    orientation: int | None = None
    profile: bytes | None = None
    is_adobe_rgb: bool = False
    clear_color: tuple[int, ...] | None = None
    deep: DeepTiff | None = None


def strip_metadata(data: bytes) -> Stripped:
    """Returns a file without its metadata, together with its orientation and colors.

    Args:
        data: the whole file, of any kind and from any source.

    Raises:
        UsageError: for a file that would take extremely long to decode, or of a refused kind.
    """
    try:
        match format_of(data):
            case "PNG":
                return _strip_png(data)
            case "JPEG":
                return _strip_jpeg(data)
            case "GIF":
                return _strip_gif(data)
            case "WEBP":
                return _strip_webp(data)
            case "TIFF":
                return _strip_tiff(data)
            case "AVIF":
                return Stripped(data=data, profile=_avif_profile(data))
            case "BMP":
                return Stripped(data=data, profile=_bmp_profile(data))
    except (struct.error, IndexError, ValueError):
        pass  # the structure is damaged: the decoder reports it
    return Stripped(data=data)


def read_exif(block: bytes) -> tuple[int, bool]:
    """Returns the orientation of an EXIF block (1 if unknown) and whether its colors are Adobe RGB.

    Args:
        block: the block with or without the `Exif` mark; a damaged block is ignored.
    """
    try:
        exif = Image.Exif()
        exif.load(block)
        orientation = exif.get(ExifTags.Base.Orientation)
        is_adobe = _is_adobe_rgb(exif)
    except Exception:  # noqa: BLE001  (Pillow raises many kinds of errors for damaged EXIF)
        return 1, False
    if isinstance(orientation, int) and 1 <= orientation <= 8:
        return orientation, is_adobe
    return 1, is_adobe


def _is_adobe_rgb(exif: Image.Exif) -> bool:
    try:
        color = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace)
        name = exif.get_ifd(ExifTags.IFD.Interop).get(1) if color == _UNCALIBRATED else None
    except Exception:  # noqa: BLE001  (the part is missing or damaged)
        return False
    text = name.decode("ascii", "replace") if isinstance(name, bytes) else str(name)
    return color == _NONSTANDARD_ADOBE_RGB or text.rstrip("\0 ") == _ADOBE_RGB


def _result(data: bytes, exif: bytes | None, xmp: bytes | None, profile: bytes | None) -> Stripped:
    """Returns a stripped file with its orientation, by EXIF before XMP, and its colors."""
    orientation, is_adobe = read_exif(exif) if exif else (1, False)
    found = _XMP_ORIENTATION.search(xmp or b"")
    if orientation == 1 and found:
        orientation = int(found[1])
    return Stripped(data=data, orientation=orientation, profile=profile, is_adobe_rgb=is_adobe)


def _strip_png(data: bytes) -> Stripped:
    chunks = png_chunks(data)
    plain = _result(stripped_png(chunks), chunks.exif, chunks.xmp, chunks.profile)
    return dataclasses.replace(plain, clear_color=chunks.clear_color)


_ENTROPY_END = re.compile(rb"\xff+([^\x00\x01\xff\xd0-\xd7])")
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""Segments that begin an image; their first byte is the number of bits per color."""
_EXIF, _XMP, _ICC = b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"


def _strip_jpeg(data: bytes) -> Stripped:
    kept, exif, xmp = [data[:2]], b"", b""
    parts: dict[int, bytes] = {}  # of the color profile, counted from 1
    num_parts = 0
    for code, start, end in _segments(data):
        body = data[start + 4 : end]
        if code in _FRAMES and body[:1] not in {b"\x08", b""}:
            raise UsageError(f"a JPEG of {body[0]} bits; save it with 8 bits, as JPEG or PNG")
        if code == 0xDA:
            _check_scans(data, start)
            found = [parts.get(number, b"") for number in range(1, num_parts + 1)]
            profile = b"".join(found) if found and all(found) else None
            return _result(b"".join([*kept, data[start:]]), exif, xmp, profile)
        is_metadata = 0xE0 <= code <= 0xEF or code == 0xFE
        # The decoder needs these two segments, which state the coding of colors, if complete.
        is_jfif = code == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14
        is_adobe = code == 0xEE and body.startswith(b"Adobe") and len(body) >= 12
        if not is_metadata or is_jfif or is_adobe:
            kept.append(data[start:end])
        elif code == 0xE1 and body.startswith(_EXIF):
            exif = exif or body
        elif code == 0xE1 and body.startswith(_XMP):
            xmp = xmp or body
        elif code == 0xE2 and body.startswith(_ICC) and len(body) > 14:
            parts.setdefault(body[12], body[14:])
            num_parts = body[13]
    return Stripped(data=data)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields code, start and end of each segment of a JPEG file up to its first scan."""
    at = 2
    while at < len(data):
        at = data.index(b"\xff", at)  # libjpeg also skips stray bytes between segments
        while data[at + 1] == 0xFF:
            at += 1
        code = data[at + 1]
        if code in {0x00, 0x01, 0xD8} or 0xD0 <= code <= 0xD7:
            at += 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + length
        if code == 0xD9 or length < 2 or end > len(data):
            return
        yield code, at, end
        if code == 0xDA:
            return
        at = end


def _check_scans(data: bytes, start: int) -> None:
    """Refuses a JPEG of too many scans; the first one begins at `start`."""
    count, at = 0, start
    while at + 4 <= len(data):
        code = data[at + 1]
        if code == 0xD9:
            return
        count += code == 0xDA
        if count > _MOST_SCANS:
            raise UsageError(f"a JPEG of more than {_MOST_SCANS} scans; save it again")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found = _ENTROPY_END.search(data, at)
        if found is None:
            return
        at = found.end() - 2


def _strip_gif(data: bytes) -> Stripped:
    """Returns a GIF file with only the first frame."""
    at = 13 + _table_bytes(data[10])
    kept, profile, end = [data[:at]], None, b";"
    try:
        while data[at] != 0x3B:
            start = at
            if data[at] == 0x2C:
                at = _blocks_end(data, at + 11 + _table_bytes(data[at + 9]))
                kept.append(data[start:at])
                break
            if data[at] != 0x21:
                at += 1
                continue
            at = _blocks_end(data, at + 2)
            if data[start + 1] == 0xF9:
                kept.append(data[start:at])
            elif data[start + 3 : start + 14] == b"ICCRGBG1012":
                profile = _block_content(data[start + 14 : at])
    except IndexError:  # truncated: the decoder reports it if this affects the image
        end = data[at:] if data[at : at + 1] != b"!" else b""
    return Stripped(data=b"".join([*kept, end]), profile=profile)


def _table_bytes(flags: int) -> int:
    """Returns the length of a color table, 0 if the flags state none."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _blocks_end(data: bytes, at: int) -> int:
    """Returns the end of a sequence of data blocks; IndexError if it has none."""
    while data[at]:
        at += 1 + data[at]
    return at + 1


def _block_content(blocks: bytes) -> bytes:
    """Returns the content of a sequence of data blocks without their lengths."""
    content, at = bytearray(), 0
    while length := blocks[at]:
        content += blocks[at + 1 : at + 1 + length]
        at += 1 + length
    return bytes(content)


_METADATA_FLAGS, _ALPHA_FLAG, _ANIMATION_FLAG = 0x2C, 0x10, 0x02


def _strip_webp(data: bytes) -> Stripped:
    kept: list[bytes] = []
    profile = exif = xmp = None
    has_frame = False
    at = 12
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while at + 8 <= end:
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        body = data[at + 8 : at + 8 + size]
        whole = data[at : at + 8 + size + size % 2]
        at += len(whole)
        if kind == b"EXIF":
            exif = body if exif is None else exif
        elif kind == b"XMP ":
            xmp = body if xmp is None else xmp
        elif kind == b"ICCP":
            profile = body if len(body) == size else None
        elif kind in {b"VP8X", b"ANIM", b"ALPH", b"VP8 ", b"VP8L"} or (
            kind == b"ANMF" and not has_frame
        ):
            if len(body) < size:
                return Stripped(data=data)  # truncated within the image
            has_frame = has_frame or kind == b"ANMF"
            if kind == b"VP8X":
                # The flags of removed metadata are cleared. The first frame of an animation may
                # be smaller than the image, which is transparent around it.
                flags = body[0] & ~_METADATA_FLAGS
                flags |= _ALPHA_FLAG if flags & _ANIMATION_FLAG else 0
                whole = whole[:8] + bytes([flags]) + whole[9:]
            kept.append(whole + b"\0" * (len(whole) % 2))
    file = b"".join(kept)
    head = b"RIFF" + (len(file) + 4).to_bytes(4, "little") + b"WEBP"
    return _result(head + file, exif, xmp, profile)


def _strip_tiff(data: bytes) -> Stripped:
    if (raw := tiff.raw_photo(data)) is not None:
        raise UsageError(f"{raw}: develop it, then save it as JPEG or PNG")
    tags = tiff.Directory(data)
    if (deep := deep_tiff(tags)) is not None:
        return Stripped(data=data, orientation=tags.number(tiff.ORIENTATION, 1), deep=deep)
    return Stripped(data=tiff.stripped_tiff(tags))


def _avif_profile(data: bytes) -> bytes | None:
    """Returns the profile of the color code points (H.273) of an AVIF file.

    Pillow reads an embedded profile, but not the code points.
    """
    head = data[:_MOST_HEAD_BYTES]
    found = re.search(rb"colrnclx\0(.)\0(.)", head, re.DOTALL)
    if found is None or b"colrprof" in head or b"colrrICC" in head:
        return None
    return coded_profile(found[1] + found[2] + b"\0\1") or None


def _bmp_profile(data: bytes) -> bytes | None:
    """Returns the embedded profile of a BMP file of version 5."""
    if len(data) < 138 or int.from_bytes(data[14:18], "little") < 124 or data[70:74] != b"DEBM":
        return None
    start, size = struct.unpack_from("<II", data, 14 + 112)
    return data[14 + start : 14 + start + size] or None
