"""Names the kind of a file from its first bytes, with advice for kinds that cannot be read."""

import re

from blip3o.core.texts import LFS_START
from blip3o.imaging.tiff import unread_layout

_RESAVE = "save it as JPEG or PNG"
_DEVELOP = "develop it, then " + _RESAVE
_FRAME = "save a frame of it as JPEG or PNG"
_DECODE = "decode it into a file"
_AS_LINES = "write its rows as JSON lines, and its images as files"

_Starts = bytes | tuple[bytes, ...]
_STORES: tuple[tuple[_Starts, str, str], ...] = (
    (LFS_START, "a git-lfs pointer", "fetch the file: git lfs pull"),
    (b"PK\3\4", "a ZIP archive or an Excel sheet", "unpack it, or save the sheet as CSV"),
    (b"\x1f\x8b", "a gzip archive", "unpack it: gunzip FILE"),
    (b"BZh", "a bzip2 archive", "unpack it: bunzip2 FILE"),
    (b"\xfd7zXZ", "an xz archive", "unpack it: unxz FILE"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", "unpack it: unzstd FILE"),
    (b"\x04\x22\x4d\x18", "an LZ4 archive", "unpack it: unlz4 FILE"),
    (b"7z\xbc\xaf", "a 7-Zip archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"PAR1", "a Parquet table", _AS_LINES),
    (b"ARROW1", "an Arrow table", _AS_LINES),
    (b"FEA1", "a Feather table", _AS_LINES),
    (b"\x89HDF", "an HDF5 file", _AS_LINES),
    (b"\x93NUMPY", "a NumPy array", _AS_LINES),
    (b"SQLite format 3", "an SQLite database", _AS_LINES),
    ((b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5"), "a Python pickle", _AS_LINES),
    (b"%PDF-", "a PDF document", "save its page as JPEG or PNG"),
)
"""Archives, tables and documents, and the pointer that git-lfs leaves for an unfetched file.

Each entry holds the first bytes, or several alternatives, then the kind and the advice."""

_STARTS: tuple[tuple[_Starts, str, str], ...] = (
    ((b"\xff\x0a", b"\0\0\0\x0cJXL "), "a JPEG XL image", _RESAVE),
    ((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), "a JPEG 2000 image", _RESAVE),
    (b"\xff\xd8\xff\xf7", "a JPEG-LS image", _RESAVE),
    (b"II\xbc", "a JPEG XR image", _RESAVE),
    (b"8BPS", "a Photoshop document (PSD)", _RESAVE),
    (b"gimp xcf", "a GIMP document (XCF)", _RESAVE),
    ((b"%!PS", b"\xc5\xd0\xd3\xc6"), "a PostScript drawing (EPS)", _RESAVE),
    (b"icns", "an icon (ICNS)", _RESAVE),
    (b"DDS ", "a texture (DDS)", _RESAVE),
    (b"P7\n", "a PAM image", _RESAVE),
    (b"PF\n", "an image of floating point numbers (PFM)", _RESAVE),
    (b"qoif", "a QOI image", _RESAVE),
    (b"FLIF", "a FLIF image", _RESAVE),
    (b"BPG\xfb", "a BPG image", _RESAVE),
    (b"v/1\x01", "an OpenEXR image", _RESAVE),
    ((b"#?RADIANCE", b"#?RGBE"), "a Radiance HDR image", _RESAVE),
    (b"SIMPLE  =", "a FITS image", _RESAVE),
    (b"AT&TFORM", "a DjVu document", "save its page as JPEG or PNG"),
    (b"\x01\xda", "an SGI image", _RESAVE),
    (b"\x0a\x05\x01", "a PCX image", _RESAVE),
    (b"\xd7\xcd\xc6\x9a", "a Windows drawing (WMF)", _RESAVE),
    (b"FUJIFILMCCD-RAW", "a camera's raw photo (RAF)", _DEVELOP),
    ((b"IIRO", b"IIRS", b"MMOR"), "a camera's raw photo (ORF)", _DEVELOP),
    (b"IIU\0", "a camera's raw photo (RW2)", _DEVELOP),
    (b"FOVb", "a camera's raw photo (X3F)", _DEVELOP),
    (b"\0MRM", "a camera's raw photo (MRW)", _DEVELOP),
    (b"\x89PNG\n", "a PNG whose line ends were changed as if it were text", "copy it as binary"),
    (b"\x1a\x45\xdf\xa3", "a video", _FRAME),
    (b"OggS", "an audio or video file", _FRAME),
    (b"ID3", "an audio file", "choose an image"),
    (b"data:", "a data URI", _DECODE),
    ((b"iVBORw0KGgo", b"/9j/", b"UklGR"), "an image written as base64 text", _DECODE),
)
"""Images of other formats, audio and video, in the same columns."""

_READ: dict[str, _Starts] = {
    "PNG": b"\x89PNG\r\n\x1a\n",
    "JPEG": b"\xff\xd8\xff",
    "GIF": b"GIF8",
    "BMP": b"BM",
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
"""Pillow's names of the readable formats, and the first bytes of their files."""

HEAD_BYTES = 512
"""Bytes at the beginning of a file that `store_of` needs."""
_WEB_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html)\b", re.IGNORECASE)
_PNM = re.compile(rb"P[1-6fy]\s")
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2", b"msf1")
_TEXT_BYTES = 4096
_TGA_KINDS, _TGA_BITS = (1, 2, 3, 9, 10, 11), (8, 15, 16, 24, 32)


def format_of(data: bytes) -> str | None:
    """Returns Pillow's name of the format of a readable image, or None for other files.

    Args:
        data: the file or its first bytes; the rest of it is not checked.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and _brand(data) == "avif":
        return "AVIF"
    if _PNM.match(data):
        return "PPM"
    return next((name for name, starts in _READ.items() if data.startswith(starts)), None)


def store_of(head: bytes) -> str | None:
    """Returns the kind of an archive, table or web page, with advice; None for any other file.

    Args:
        head: the first `HEAD_BYTES` bytes of the file.
    """
    if _WEB_PAGE.match(head):
        return "a web page, perhaps an error page: fetch the file itself"
    return _of_start(head, _STORES)


def _of_start(data: bytes, table: tuple[tuple[_Starts, str, str], ...]) -> str | None:
    return next((f"{kind}: {tip}" for starts, kind, tip in table if data.startswith(starts)), None)


def unread(data: bytes) -> str | None:
    """Returns the kind of a file that cannot be read as an image, with advice.

    Args:
        data: the whole file.

    Returns:
        For example "a HEIC photo: save it as JPEG or PNG"; None for an unknown kind.
    """
    known = _of_start(data, (*_STORES, *_STARTS))
    return known or _of_boxes(data) or _of_tiff(data) or _of_text(data) or _of_rest(data)


def _of_boxes(data: bytes) -> str | None:
    """Returns the kind of a file of ISO boxes (such as HEIC) or of a RIFF file."""
    if data[4:8] == b"ftyp":
        match _brand(data):
            case "avif":
                return f"an AVIF image, damaged or not supported by this Pillow: {_RESAVE}"
            case "heic":
                return f"a HEIC photo: {_RESAVE}"
            case "crx":
                return f"a camera's raw photo (CR3): {_DEVELOP}"
        return f"a video: {_FRAME}"
    if data[:4] == b"RIFF" and data[8:12] in {b"WAVE", b"AVI "}:
        return f"an audio or video file: {_FRAME}"
    return None


def _brand(data: bytes) -> str | None:
    """Returns the image family of the brands in an `ftyp` box: avif, heic or crx, or None."""
    length = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, length, 4))]
    if any(brand in {b"avif", b"avis"} for brand in brands):
        return "avif"
    if any(brand in _HEIF for brand in brands):
        return "heic"
    return "crx" if brands[0] == b"crx " else None


def _of_tiff(data: bytes) -> str | None:
    layout = unread_layout(data) if format_of(data) == "TIFF" else None
    return None if layout is None else f"{layout}: save it with 8 or 16 bits, as TIFF or PNG"


def _of_text(data: bytes) -> str | None:
    head = data[:_TEXT_BYTES]
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = head[: len(head) // 2 * 2].decode("utf-16", "replace")
    else:
        text = head.decode("utf-8-sig", "replace")
    text = text.lstrip().lower()
    is_markup = text.startswith("<")
    if is_markup and re.search(r"<svg[\s>]|<!doctype svg", text):
        return f"an SVG drawing: {_RESAVE}"
    if is_markup and re.search(r"<(!doctype html|html|head|body|script|title)\b", text):
        return "a web page: save the image itself, not the page that shows it"
    if is_markup and re.match(r"<(\?xml|error|[a-z]+[\s>])", text):
        return "XML text: save the image itself"
    shown = sum(letter.isprintable() or letter.isspace() for letter in text)
    if text and "\ufffd" not in text[:-3] and shown == len(text):
        return "a JSON text: choose an image" if text[0] in "{[" else "a text: choose an image"
    return None


def _of_rest(data: bytes) -> str | None:
    """Returns the kind of a file whose signature is not at its start."""
    if not data.strip(b"\0"):
        return "a file of only zero bytes, as a broken copy leaves it: copy it again"
    if data[128:132] == b"DICM":
        return f"a DICOM scan: {_RESAVE}"
    if data[257:262] == b"ustar":
        return "a tar archive: unpack it"
    if data[:4] in {b"\0\0\1\0", b"\0\0\2\0"} and any(data[4:6]):
        return f"an icon or a mouse cursor (ICO, CUR): {_RESAVE}"
    is_tga = (
        len(data) > 18 and data[1] in {0, 1} and data[2] in _TGA_KINDS and data[16] in _TGA_BITS
    )
    if data[-18:].startswith(b"TRUEVISION-XFILE") or (is_tga and any(data[12:16])):
        return f"a TGA image: {_RESAVE}"
    if data[40:44] == b" EMF":
        return f"a Windows drawing (EMF): {_RESAVE}"
    return None
