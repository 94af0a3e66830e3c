"""Names a file that is not the tar it should be by its first bytes."""

PROBE_BYTES = 512

_FETCH = "fetch or write it again"
_UNPACK = "nothing can be found inside it by position: unpack it, so that a plain .tar is left"
_POINTER = b"version https://git-lfs.github.com/spec/"
_MARKS = (
    (b"\x1f\x8b", "compressed with gzip", _UNPACK),
    (b"BZh", "compressed with bzip2", _UNPACK),
    (b"\xfd7zXZ\0", "compressed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
    (b"\x04\x22\x4d\x18", "compressed with lz4", _UNPACK),
    (b"\x1f\x9d", "compressed with compress", _UNPACK),
    (b"PK\x03\x04", "a zip archive", "unpack it and give the folder, or write a tar"),
    (b"PK\x05\x06", "an empty zip archive", _FETCH),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it and give the folder, or write a tar"),
    (b"Rar!", "a rar archive", "unpack it and give the folder, or write a tar"),
    (b"PAR1", "a parquet file", "write its rows as a tar, a folder or a .jsonl list"),
    (b"ARROW1", "an arrow file", "write its rows as a tar, a folder or a .jsonl list"),
    (b"\x89HDF", "an HDF5 file", "write its rows as a tar, a folder or a .jsonl list"),
    (b"\x89PNG", "a PNG image", "give the folder of the images instead"),
    (b"\xff\xd8\xff", "a JPEG image", "give the folder of the images instead"),
)
_WEB_PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<error")


def unlike_a_tar(head: bytes) -> tuple[str, str] | None:
    """Returns what a file is instead of a tar and what to do, None if it is nothing known.

    Args:
        head: its first `PROBE_BYTES` bytes.
    """
    if not head:
        return "it is empty (0 bytes)", _FETCH
    if head.startswith(_POINTER):
        return "it is a git-lfs pointer, not the file itself", "fetch the file with `git lfs pull`"
    for mark, name, advice in _MARKS:
        if head.startswith(mark):
            return f"it is {name}", advice
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_WEB_PAGES):
        return "it is a web page, such as an error of a server", _FETCH
    if text.startswith((b"{", b"[")):
        return "it is JSON", "name a list of records .json or .jsonl; or " + _FETCH
    return None
