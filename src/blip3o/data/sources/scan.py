"""Scans a folder once for images, their text files, and files that are passed over."""

import dataclasses
import os
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

from blip3o.data.sources.metadata import METADATA_NAMES
from blip3o.data.sources.names import (
    CAPTION_SUFFIXES,
    IMAGE_SUFFIXES,
    OTHER_IMAGE_SUFFIXES,
    is_junk,
)

_UNREAD_METADATA = "metadata.parquet"
_OTHER_TEXTS = (
    *(".md", ".csv", ".tsv", ".jsonl", ".ndjson", ".yaml", ".yml", ".xml", ".rst", ".text"),
    *(".cap", ".captions", ".tag", ".tags", ".prompt", ".prompts", ".srt", ".rtf", ".html"),
    *(".gz", ".toml", ".json5", ".docx", ".odt", ".xlsx", ".xmp"),
)
"""Endings of text files that are not read, although they may hold captions."""
_NOTED = 3
"""Number of example names for each reason."""


@dataclasses.dataclass(slots=True)
class Scan:
    """Contents of a folder; paths are relative to it.

    Args:
        images: paths of the images, sorted.
        text_endings: for each image, the endings of its text files. The image's path without its
            own ending, plus such an ending, is the path of a text file.
        metadata: metadata files in the format of Hugging Face's `imagefolder`.
        texts: text files whose names match no image.
        passed_over: other files by reason, with example names.
    """

    images: list[str]
    text_endings: list[tuple[str, ...]]
    metadata: list[str]
    texts: list[str]
    passed_over: "PassedOver"


class PassedOver:
    """Counts files that are left out, by reason, and keeps example names."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._names: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Counts a file or row by the reason why it is left out; its name may become an example."""
        self._counts[reason] += 1
        names = self._names.setdefault(reason, [])
        if len(names) < _NOTED:
            names.append(name if name.isprintable() else ascii(name)[1:-1])

    def counts(self) -> dict[str, int]:
        """Returns the counts by reason; each reason includes example names."""
        return {
            f"{reason} ({', '.join(self._names[reason])}{', ...' * (count > _NOTED)})": count
            for reason, count in self._counts.most_common()
        }


def scan(base: str) -> Scan:
    """Returns the contents of a folder and its subfolders.

    Links are followed. A folder is read once however many links lead to it, so circular links
    cannot loop forever. A link to a file counts as a separate file.
    """
    found = Scan([], [], [], [], PassedOver())
    pairs: list[tuple[str, tuple[str, ...]]] = []
    endings: dict[tuple[str, ...], tuple[str, ...]] = {}  # a million images share a few of them
    for folder, names, dangling in _folders(base, found.passed_over):
        images, texts = _sort_names(folder, names, dangling, found)
        used: set[str] = set()
        for name in images:
            own = _texts_of(name, texts)
            used.update(os.path.splitext(name)[0] + ending for ending in own)
            pairs.append((os.path.join(folder, name), endings.setdefault(own, own)))
        unused = (text for some in texts.values() for text in some if text not in used)
        found.texts += [os.path.join(folder, text) for text in unused]
    pairs.sort()
    found.images = [name for name, _ in pairs]
    found.text_endings = [text_endings for _, text_endings in pairs]
    found.texts.sort()
    return found


def _folders(base: str, passed_over: PassedOver) -> Iterator[tuple[str, list[str], set[str]]]:
    """Yields each folder's path, its file names, and the names of dangling links.

    Real folders come first, then linked ones.
    """
    seen: set[tuple[int, int]] = set()
    above = {_identity(os.stat(one)) for one in Path(os.path.realpath(base)).parents}
    waiting, links = deque([""]), deque[str]()
    while waiting or links:
        folder = waiting.popleft() if waiting else links.popleft()
        full = os.path.join(base, folder)
        try:
            identity = _identity(os.stat(full))
            if identity in seen or identity in above:
                where = "that is read already" if identity in seen else "above this one"
                passed_over.add(f"a link to a folder {where}", folder)
                continue
            seen.add(identity)
            with os.scandir(full) as entries:
                files: list[str] = []
                dangling: set[str] = set()
                for entry in sorted(entries, key=lambda one: one.name):
                    if not _is_folder(entry):
                        files.append(entry.name)
                        if entry.is_symlink() and not os.path.exists(entry.path):
                            dangling.add(entry.name)
                    elif is_junk(entry.name):
                        passed_over.add("a hidden or junk folder", os.path.join(folder, entry.name))
                    else:
                        following = links if entry.is_symlink() else waiting
                        following.append(os.path.join(folder, entry.name))
        except OSError as error:
            passed_over.add(f"a folder that cannot be read: {error.strerror}", folder or base)
            continue
        yield folder, files, dangling


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # circular links
        return False


def _sort_names(
    folder: str, names: list[str], dangling: set[str], found: Scan
) -> tuple[list[str], dict[str, list[str]]]:
    """Returns a folder's images, and its text files by name with a lower-case ending."""
    images: list[str] = []
    texts: dict[str, list[str]] = {}
    for name in names:
        path = os.path.join(folder, name)
        stem, ending = os.path.splitext(name)
        low = ending.lower()
        if is_junk(name):
            if low in IMAGE_SUFFIXES:
                found.passed_over.add("a hidden file", path)
        elif name in dangling:
            found.passed_over.add("a link that leads nowhere", path)
        elif name.lower() in METADATA_NAMES:
            found.metadata.append(path)
        elif name.lower() == _UNREAD_METADATA:
            found.passed_over.add("captions in Parquet; write them as metadata.jsonl", path)
        elif low in IMAGE_SUFFIXES:
            images.append(name)
        elif low in (*CAPTION_SUFFIXES, ".json"):
            texts.setdefault(stem + low, []).append(name)
        elif low in _OTHER_TEXTS:
            found.texts.append(path)
        elif low in OTHER_IMAGE_SUFFIXES:
            found.passed_over.add(f"an image of a kind that is not read: {low}", path)
        else:
            found.passed_over.add(f"not an image: {low or 'no ending'}", path)
    return images, texts


def _texts_of(image: str, texts: dict[str, list[str]]) -> tuple[str, ...]:
    """Returns the endings of an image's text files: for `a.png`, those of `a.txt`, `a.png.json`."""
    stem = os.path.splitext(image)[0]
    endings = (*CAPTION_SUFFIXES, ".json")
    wanted = (name + ending for name in (stem, image) for ending in endings)
    return tuple(text[len(stem) :] for name in wanted for text in texts.get(name, ()))
