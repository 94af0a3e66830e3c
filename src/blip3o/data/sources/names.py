"""What the name of a shard's member says: which record it belongs to, and what it is there.

As in WebDataset the key ends at the first dot of the base name, and the folder belongs to the key.
"""

import functools
import unicodedata
from collections.abc import Sequence
from typing import Literal, NamedTuple

IMAGE_SUFFIXES = (
    *("png", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "tif", "tiff"),
    *("avif", "apng", "ppm", "pgm", "pbm", "pnm"),
)
ROLES = ("image", "source", "target")
"""Images that a task reads. Any other `KEY.ROLE.png` may lie beside them."""
_TEXT_SUFFIXES = ("txt", "caption")
_JUNK_FOLDERS = (
    *("__macosx", "@eadir", "@__thumb", "#recycle", "$recycle.bin"),
    *("system volume information", "lost+found"),
)
_JUNK_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")

HIDDEN = "hidden or junk files"
OTHER_TEXT = "texts with a longer name than KEY.txt"


class Use(NamedTuple):
    """What a member is in its record.

    Args:
        kind: an image, its caption, the fields of its JSON, or a text of something else.
        role: of the image, or which thing the text is of.
        rank: of several captions, or JSON files, the one with the lowest counts.
    """

    kind: Literal["image", "caption", "fields", "other text"]
    role: str = ""
    rank: int = 0


def split_name(name: bytes) -> tuple[bytes, bytes]:
    """Returns the key and the suffix in small letters; no key for a name that begins with a dot.

    Args:
        name: a member's name with folders.
    """
    folder, slash, base = name.rpartition(b"/")
    stem, _, suffix = base.partition(b".")
    return (folder + slash + stem if stem else stem), suffix.lower()


def same_key(key: bytes) -> bytes:
    """Returns a key as one compares it: `./a` is `a`, and a letter with an accent is one letter.

    Args:
        key: as stored; a Mac writes an accent as a character of its own.
    """
    while key.startswith(b"./"):
        key = key[2:].lstrip(b"/")
    if key.isascii():
        return key
    try:
        return unicodedata.normalize("NFC", key.decode()).encode()
    except UnicodeDecodeError:
        return key


def is_junk(path: str) -> bool:
    """Returns whether a path leads to or through a hidden file, or one that systems leave behind.

    Args:
        path: relative to the data, with "/" between folders.
    """
    *folders, base = path.split("/")
    return (
        any(part.startswith(".") and part not in (".", "..") for part in (*folders, base))
        or any(part.lower() in _JUNK_FOLDERS or part.startswith("PaxHeader") for part in folders)
        or base.lower() in _JUNK_FILES
    )


@functools.lru_cache(maxsize=4096)
def use_of(suffix: str) -> Use | None:
    """Returns what a member with a suffix is, None if it is nothing of a record.

    Args:
        suffix: everything behind the key's dot, in small letters.
    """
    stem, _, end = suffix.rpartition(".")
    if end in IMAGE_SUFFIXES:
        return Use("image", stem or "image")
    # `a.png.txt` beside `a.png` is its text as `a.txt` is; that wins if there are both.
    is_of_image = stem in IMAGE_SUFFIXES
    if end in _TEXT_SUFFIXES and (not stem or is_of_image):
        return Use("caption", rank=_TEXT_SUFFIXES.index(end) + len(_TEXT_SUFFIXES) * is_of_image)
    if end == "json" and (not stem or is_of_image):
        return Use("fields", rank=int(is_of_image))
    return Use("other text", stem) if end in (*_TEXT_SUFFIXES, "json") else None


def is_one_record(suffixes: Sequence[str]) -> bool:
    """Returns whether no two members with one key want to be the same thing.

    Args:
        suffixes: of the members.
    """
    found = [use_of(suffix) for suffix in suffixes]
    counted = [use for use in found if use is not None and use.kind != "other text"]
    return len(set(counted)) == len(counted)


@functools.lru_cache(maxsize=4096)
def uses(suffixes: tuple[str, ...]) -> tuple[Use | None, ...]:
    """Returns what each member of a record is; None for one that does not count.

    Args:
        suffixes: of the members.

    Raises:
        ValueError: if two members want to be one thing, seem to be a record of their own, or if
            none counts.
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
                    "keep one, or give each a key of its own"
                )
            first[use] = suffix
        found.append(use)
    if not first:
        raise ValueError(
            f"none of its members counts ({', '.join(f'.{suffix}' for suffix in suffixes)}): "
            "the text of a record is KEY.txt, KEY.caption or KEY.json, and a key has no dots"
        )
    images = {use.role for use in first if use.kind == "image"} - set(ROLES)
    for suffix, use in zip(suffixes, found, strict=True):
        if use is not None and use.kind == "other text" and use.role in images:
            raise ValueError(
                f".{use.role} has an image and the text .{suffix}, so it seems to be a record of "
                "its own; but a key ends at the first dot of a name: write - for the other dots"
            )
    return tuple(use if use and _counts(use, first) else None for use in found)


def _counts(use: Use, all_uses: dict[Use, str]) -> bool:
    if use.kind == "other text":
        return False
    return use.kind == "image" or use.rank == min(
        other.rank for other in all_uses if other.kind == use.kind
    )
