"""Classifies files by their names: images, texts or junk, and parts of a record in a tar shard.

As in WebDataset, a member's key ends at the first dot of its base name and includes its folder.
"""

import functools
import unicodedata
from collections.abc import Sequence
from typing import Literal, NamedTuple

IMAGE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".avif", ".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Endings of images that are read, in any case."""

OTHER_IMAGE_SUFFIXES = (
    *(".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jpx", ".jpf", ".jxr", ".svg", ".psd"),
    *(".exr", ".hdr", ".tga", ".ico", ".icns", ".pfm", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
    *(".orf", ".rw2", ".raf", ".raw", ".eps", ".pdf", ".ai", ".xcf", ".dds", ".pcx", ".fits"),
)
"""Endings of images that are not read but named in messages."""

CAPTION_SUFFIXES = (".txt", ".caption")
"""Endings of caption files, in any case."""

_JUNK_FOLDERS = (
    *("__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder"),
    *("$recycle.bin", "recycler", "recycled", "system volume information", "found.000"),
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot"),
    *("lost+found", "__pycache__"),
)
"""Folders created by macOS, Windows, network disks, Linux and Python, in this order."""
_JUNK_FILES = ("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r")

ROLES = ("image", "source", "target")
"""Roles of images that tasks read; a record may have images of other roles as well."""
_IMAGES = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)
_TEXTS = tuple(suffix[1:] for suffix in CAPTION_SUFFIXES)

HIDDEN = "a hidden or junk file"
OTHER_TEXT = "a text with a longer name than KEY.txt"


class Use(NamedTuple):
    """The part of a record that a member holds.

    Args:
        kind: an image, its caption, the fields of its JSON, or some other text.
        role: role of the image; of other texts, the part of the name between key and ending.
        rank: precedence; of several JSON files, the one with the lowest rank counts.
    """

    kind: Literal["image", "caption", "fields", "other text"]
    role: str = ""
    rank: int = 0


def is_junk(name: str) -> bool:
    """Returns whether a name (not a path) is hidden or junk: ".cache", "__MACOSX", "Thumbs.db"."""
    low = name.lower()
    return name.startswith(".") or low in _JUNK_FOLDERS or low in _JUNK_FILES


def split_name(name: bytes) -> tuple[bytes, bytes]:
    """Returns the key and the lower-case suffix; the key is empty if the base name has none."""
    folder, slash, base = name.rpartition(b"/")
    stem, _, suffix = base.partition(b".")
    return (folder + slash + stem if stem else stem), suffix.lower()


def same_key(key: bytes) -> bytes:
    """Returns a key without `./` and with composed accents, for comparisons.

    macOS stores accents in decomposed form.
    """
    while key.startswith(b"./"):
        key = key[2:].lstrip(b"/")
    if key.isascii():
        return key
    try:
        return unicodedata.normalize("NFC", key.decode()).encode()
    except UnicodeDecodeError:
        return key


def is_in_junk(folder: str) -> bool:
    """Returns whether a folder or one of its parents is hidden or junk."""
    return any(
        is_junk(part) or part.startswith("PaxHeader")
        for part in folder.split("/")
        if part not in ("", ".", "..")
    )


def why_passed_over(base: str) -> str:
    """Returns the reason why a file of a tar is not part of a record."""
    if is_junk(base):
        return HIDDEN
    end = base.lower().rpartition(".")[2] if "." in base else ""
    if f".{end}" in OTHER_IMAGE_SUFFIXES:
        return f"an image of a kind that is not read: .{end}"
    return f"neither an image nor a text: {f'.{end}' if end else 'no ending'}"


@functools.lru_cache(maxsize=4096)
def use_of(suffix: str) -> Use | None:
    """Returns the part of a record that a lower-case suffix stands for; None if there is none."""
    stem, _, end = suffix.rpartition(".")
    if end in _IMAGES:
        return Use("image", stem or "image")
    # `a.png.txt` is a text of `a.png`, like `a.txt`.
    is_of_image = stem in _IMAGES
    if end in _TEXTS and (not stem or is_of_image):
        return Use("caption", rank=_TEXTS.index(end) + len(_TEXTS) * is_of_image)
    if end == "json" and (not stem or is_of_image):
        return Use("fields", rank=int(is_of_image))
    return Use("other text", stem) if end in (*_TEXTS, "json") else None


def is_one_record(suffixes: Sequence[str]) -> bool:
    """Returns whether the members with one key are all different parts of a record."""
    found = [use_of(suffix) for suffix in suffixes]
    counted = [use for use in found if use is not None and use.kind != "other text"]
    return len(set(counted)) == len(counted)


@functools.lru_cache(maxsize=4096)
def uses(suffixes: tuple[str, ...]) -> tuple[Use | None, ...]:
    """Returns the part that each member of a record holds; None for an unused member.

    Raises:
        ValueError: if two members hold the same part, some seem to form a separate record, or
            no member is used.
    """
    found: list[Use | None] = []
    first: dict[Use, str] = {}
    for suffix in suffixes:
        use = use_of(suffix)
        if use is not None and use.kind != "other text":
            if use in first:
                thing = f"image of the role {use.role!r}" if use.kind == "image" else use.kind
                raise ValueError(
                    f"two members are its {thing}: .{first[use]} and .{suffix}; "
                    "keep one, or give them different keys"
                )
            first[use] = suffix
        found.append(use)
    if not first:
        raise ValueError(
            f"none of its members is used ({', '.join(f'.{suffix}' for suffix in suffixes)}): "
            "the text of a record is KEY.txt, KEY.caption or KEY.json, and a key has no dots"
        )
    images = {use.role for use in first if use.kind == "image"} - set(ROLES)
    for suffix, use in zip(suffixes, found, strict=True):
        if use is not None and use.kind == "other text" and use.role in images:
            raise ValueError(
                f".{use.role} has an image and the text .{suffix}, so it seems to be a separate "
                "record; but a key ends at the first dot of a name: replace the other dots by -"
            )
    return tuple(use if use and _counts(use, first) else None for use in found)


def _counts(use: Use, all_uses: dict[Use, str]) -> bool:
    if use.kind == "other text":
        return False
    return use.kind != "fields" or use.rank == min(
        other.rank for other in all_uses if other.kind == "fields"
    )
