"""A folder of images. Each image has text files of the same name, or rows in a metadata file.

a.jpg   a.txt, a.caption or a.jpg.txt: its caption   a.json: its fields
"""

import dataclasses
import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from blip3o.core.config import LocalPath
from blip3o.core.errors import UsageError
from blip3o.core.texts import decode_text, load_json
from blip3o.data.captions import CAPTION_FIELDS, captions_of, without_captions
from blip3o.data.conversations import turns_of
from blip3o.data.sources.metadata import MetadataRow, nearest, read_metadata
from blip3o.data.sources.names import IMAGE_SUFFIXES
from blip3o.data.sources.plain_files import cut, file_stamp, read_plain
from blip3o.data.sources.scan import PassedOver, scan

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """One folder.

    Args:
        path: the folder; subfolders and links are included.
        name: short name for logs, quarantine and feature caches.
        caption: caption of images without their own ("a photo of my dog"). With None such images
            are bad samples in tasks that need a caption.
    """

    kind: str = "folder"
    path: LocalPath
    name: str
    caption: str | None = None

    def build(self) -> "FolderSource":
        """Returns the open source.

        Raises:
            UsageError: if the folder is missing or has no images, or a metadata file is damaged.
        """
        return FolderSource(self)


class FolderSource:
    """Images of a folder by position, in the order of their paths."""

    is_remote = False

    def __init__(self, config: FolderConfig) -> None:
        self.name = config.name
        self._caption = config.caption
        self._base = Path(os.path.expanduser(config.path))
        if not self._base.is_dir():
            raise UsageError(f"no such folder of images: {self._base}")
        found = scan(str(self._base))
        self._names, self._text_endings = found.images, found.text_endings
        if not self._names:
            raise UsageError(_no_images(self._base, found.passed_over))
        self._other_texts = [*found.metadata, *found.texts]
        self._metadata_files: list[str] = []
        unused = [(text, "a text that belongs to no image") for text in found.texts]
        self._rows = self._read_metadata(found.metadata, unused)
        self._note_unused(unused, found.passed_over)
        self.passed_over: Mapping[str, int] = found.passed_over.counts()
        self._shards = cut(len(self._names))
        self.shard_lengths: Sequence[int] = [len(shard) for shard in self._shards]

    def __len__(self) -> int:
        return len(self._names)

    def read(self, position: int) -> tuple[str, Mapping[str, bytes], Mapping[str, Any]]:
        """Returns the path inside the folder, the image, and its fields.

        Raises:
            ValueError: if a text file of the image is invalid, two text files contradict each
                other, or the image is not a regular file or too large.
            OSError: if a file cannot be read.
        """
        name = self._names[position]
        fields = self._fields(position)
        if self._caption is not None and captions_of(fields) is None:
            fields["caption"] = self._caption
        data = read_plain(os.path.join(self._base, name))
        return name.replace(os.sep, "/"), {"image": data}, fields

    def files(self) -> Iterator[str]:
        """Yields the images and all text files: of images, metadata files, and unused ones."""
        for name in (*self._names, *self._texts_of_images(), *self._other_texts):
            yield os.path.join(self._base, name)

    def fingerprint(self) -> str:
        """Returns a hash of the images' names, sizes and modification times."""
        return self._fingerprint(self._names)

    def shard_fingerprint(self, number: int) -> str:
        """Returns such a hash of the images of a shard."""
        return self._fingerprint([self._names[position] for position in self._shards[number]])

    def texts_fingerprint(self) -> str:
        """Returns such a hash of the text files, which do not affect image features."""
        return self._fingerprint([*self._texts_of_images(), *self._metadata_files])

    def _texts_of_images(self) -> Iterator[str]:
        for name, endings in zip(self._names, self._text_endings, strict=True):
            for ending in endings:
                yield os.path.splitext(name)[0] + ending

    def _fields(self, position: int) -> dict[str, Any]:
        """Returns the fields of an image; ValueError if its text files contradict each other."""
        name = self._names[position]
        fields: dict[str, Any] = {}
        texts: list[_Given] = []
        listed: list[_Given] = []
        own: list[_Given] = []
        for ending in self._text_endings[position]:
            file = os.path.splitext(name)[0] + ending
            if ending.lower().endswith(".json"):
                loaded = self._read(file, load_json)
                if not isinstance(loaded, dict):
                    raise ValueError(f"{file}: the JSON is not an object")
                own.append((file, captions_of(loaded)))
                fields = {**loaded, **fields}
            else:
                texts.append((file, [self._read(file, decode_text).strip()]))
        for row in self._rows.get(name, ()):
            listed.append((row.file, captions_of(row.fields)))
            fields = {**row.fields, **fields}
        # A text file takes precedence over the .json of the same image, as in tar shards.
        _check_agreement([*texts, *listed] if texts else [*listed, *own])
        if texts:
            return {**without_captions(fields), "caption": texts[0][1][0]}
        return fields

    def _read(self, file: str, parse: Callable[[bytes], T]) -> T:
        data = read_plain(os.path.join(self._base, file))
        try:
            return parse(data)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def _read_metadata(
        self, files: Sequence[str], unused: list[tuple[str, str]]
    ) -> dict[str, list[MetadataRow]]:
        """Returns the metadata rows of each image; appends unusable metadata to `unused`."""
        rows: dict[str, list[MetadataRow]] = {}
        names = set(self._names)
        # macOS stores accents in file names in decomposed form, lists in composed form.
        spelled = {_composed(name): name for name in self._names} if files else {}
        for file in files:
            found = read_metadata(self._base, file)
            if found is None:
                unused.append((file, "a list of captions without a column file_name"))
                continue
            all_fields = [row.fields for some in found.values() for row in some]
            if all(captions_of(one) is None and turns_of(one) is None for one in all_fields):
                names_known = " or ".join(CAPTION_FIELDS)
                unused.append((file, f"a list of images without a column {names_known}"))
            self._metadata_files.append(file)
            for image, some in found.items():
                known = image if image in names else spelled.get(_composed(image), image)
                rows.setdefault(known, []).extend(some)
        unused += [
            (image, "an image that is named in a list of captions but not read")
            for image in sorted(rows.keys() - names)
        ]
        return {image: nearest(rows[image]) for image in self._names if image in rows}

    def _note_unused(self, unused: Iterable[tuple[str, str]], passed_over: PassedOver) -> None:
        """Counts unused text files by reason, which mentions the use of the default caption."""
        num_defaults = sum(
            not endings and all(captions_of(row.fields) is None for row in self._rows.get(name, ()))
            for name, endings in zip(self._names, self._text_endings, strict=True)
        )
        default = ""
        if self._caption is not None and num_defaults:
            takers = "1 image takes" if num_defaults == 1 else f"{num_defaults} images take"
            default = f", while {takers} the default caption {self._caption!r}"
        for text, reason in unused:
            passed_over.add(reason + default, text)

    def _fingerprint(self, files: Iterable[str]) -> str:
        digest = hashlib.sha256()
        for name in files:
            line = f"{name}/{file_stamp(os.path.join(self._base, name))}\n"
            digest.update(os.fsencode(line))  # names need not be valid UTF-8
        return digest.hexdigest()[:32]


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


_Given = tuple[str, Any]
"""A file, and the captions that it gives an image."""


def _check_agreement(files: Iterable[_Given]) -> None:
    """Raises ValueError if two files give an image different captions."""
    given = [(file, captions) for file, captions in files if captions is not None]
    for file, captions in given[1:]:
        if captions != given[0][1]:
            raise ValueError(
                f"{given[0][0]} and {file} give the image different captions; keep one of them"
            )


def _no_images(base: Path, passed_over: PassedOver) -> str:
    """Returns the error message for a folder without images."""
    there = "".join(f"; {count} x {why}" for why, count in passed_over.counts().items())
    if any(base.glob("*.tar")):
        there = f"; to read its tar shards, give {base}/*.tar"
    return f"no image in {base}; it may hold {', '.join(IMAGE_SUFFIXES)}{there}"
