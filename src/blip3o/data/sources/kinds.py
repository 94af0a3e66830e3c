"""Which files are images, texts, junk or something else, told by their names and first bytes."""

import re

IMAGE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".avif", ".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Endings of images, in any case."""

OTHER_IMAGE_SUFFIXES = (
    *(".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jpx", ".jpf", ".jxr", ".svg", ".psd"),
    *(".exr", ".hdr", ".tga", ".ico", ".icns", ".pfm", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
    *(".orf", ".rw2", ".raf", ".raw", ".eps", ".pdf", ".ai", ".xcf", ".dds", ".pcx", ".fits"),
)
"""Endings of images that are not read; somebody who has them wants to hear it."""

CAPTION_SUFFIXES = (".txt", ".caption")
"""Endings of a text that is an image's caption, in any case."""

_JUNK_FOLDERS = (
    *("__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "lost+found"),
    *("system volume information", "__pycache__", "#snapshot", "@tmp"),
)
_JUNK_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")

_LFS = b"version https://git-lfs.github.com/"
_MAGIC = (
    (_LFS, "a git-lfs pointer, not the file itself", "fetch it with: git lfs pull"),
    (b"PAR1", "a Parquet file", "write its rows as JSON lines, and its images as files"),
    (b"ARROW1", "an Arrow file", "write its rows as JSON lines, and its images as files"),
    (b"FEA1", "a Feather file", "write its rows as JSON lines, and its images as files"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it: gunzip FILE"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it: unzstd FILE"),
    (b"\xfd7zXZ", "compressed with xz", "unpack it: unxz FILE"),
    (b"BZh", "compressed with bzip2", "unpack it: bunzip2 FILE"),
    (b"\x04\x22\x4d\x18", "compressed with lz4", "unpack it: unlz4 FILE"),
    (b"PK\x03\x04", "a zip archive (or an Excel sheet)", "unpack it, or save the sheet as CSV"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it and give the folder"),
    (b"Rar!", "a rar archive", "unpack it and give the folder"),
    (b"\x89HDF", "an HDF5 file", "write its rows as JSON lines, and its images as files"),
    (b"\x93NUMPY", "a NumPy array", "write its rows as JSON lines, and its images as files"),
    (b"SQLite format 3", "an SQLite database", "write its rows as JSON lines"),
    (b"\x80\x02", "a Python pickle", "write its rows as JSON lines; pickles are never opened"),
    (b"\x80\x03", "a Python pickle", "write its rows as JSON lines; pickles are never opened"),
    (b"\x80\x04", "a Python pickle", "write its rows as JSON lines; pickles are never opened"),
    (b"\x80\x05", "a Python pickle", "write its rows as JSON lines; pickles are never opened"),
    (b"%PDF", "a PDF file", "save its pages as images"),
    (b"<!doctype html", "a web page", "fetch the file itself: this may be an error page"),
    (b"<html", "a web page", "fetch the file itself: this may be an error page"),
)
_ANY_MAGIC = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(" + b"|".join(re.escape(magic) for magic, _, _ in _MAGIC) + rb")",
    re.IGNORECASE,
)
HEAD_BYTES = 512
"""How much of a file's beginning tells what it is."""


def is_junk(name: str) -> bool:
    """Returns whether a file or folder of this name is hidden or left by a system.

    Args:
        name: one name, not a path: ".cache", "__MACOSX", "._a.png", "Thumbs.db".
    """
    low = name.lower()
    return name.startswith(".") or low in _JUNK_FOLDERS or low in _JUNK_FILES


def foreign(head: bytes) -> str | None:
    """Returns what a file is that holds no records or image, and what to do; None if unknown.

    Args:
        head: its first `HEAD_BYTES` bytes.
    """
    found = _ANY_MAGIC.match(head)
    if found is None:
        return None
    begin = found[1].lower()
    return next(f"{what}; {advice}" for magic, what, advice in _MAGIC if magic.lower() == begin)
