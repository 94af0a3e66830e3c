r"""Lists of records: JSON lines or one JSON array, with the images in files. Local or remote.

{"image": "a.png", "caption": "a red cat"}
{"image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, ...]}
{"source": "a.png", "target": "b.png", "instruction": "make the cat blue"}
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3o.core.config import LocalPath
from blip3o.core.errors import UsageError
from blip3o.core.files import atomic_file
from blip3o.core.log import say
from blip3o.core.texts import decode_text, has_wide_text, load_json, reason_of
from blip3o.data.sources.files import files_of, is_remote, private_path
from blip3o.data.sources.json_places import Place, elements_in, members_in, values_in
from blip3o.data.sources.local_files import LocalFiles
from blip3o.data.sources.plain_files import check_plain, cut, file_stamp
from blip3o.data.sources.references import file_of, read_reference, take_images
from blip3o.imaging.kinds import HEAD_BYTES, store_of

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson", ".jsonlines", ".jl")
"""File name endings of lists of records, in any case."""
_LIST_NAMES = ("data", "records", "rows", "samples", "examples", "items", "train")
"""Keys under which a JSON object may hold its list of records."""
_RECORD_NAMES = {
    *("image", "images", "file_name", "caption", "captions", "instruction"),
    *("conversations", "messages", "text_conversations"),
}
"""Fields that identify a single JSON object as a record."""
_FETCH_BYTES = 1 << 24
_MOST_STAMPED = 200_000
"""Lists with more records leave the image files out of their fingerprint."""
_MAX_TEXT_BYTES = 1 << 30
"""Longer files are read as JSON lines without parsing them whole, unless they are named .json."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonlConfig:
    """One file of records.

    Args:
        path: the file or its address. JSON lines are read line by line. A JSON array, records that
            span several lines, and UTF-16 are kept in memory. A remote file is copied to the user's
            cache; its images are not.
        name: short name for logs, quarantine and feature caches.
        image_folder: folder or address that image paths start from; None is the file's folder.
    """

    kind: str = "jsonl"
    path: LocalPath
    name: str
    image_folder: str | None = None

    def build(self) -> "JsonlSource":
        """Returns the open source.

        Raises:
            UsageError: if the file cannot be read or is not a list of records.
        """
        return JsonlSource(self)


class JsonlSource:
    """Records of a JSON or JSON lines file by position; only their places are kept in memory."""

    def __init__(self, config: JsonlConfig) -> None:
        self.name = config.name
        self._is_copy = is_remote(config.path)
        if self._is_copy:
            self._path, self._base = _local_copy(config.path), config.path.rpartition("/")[0]
        else:
            self._path = Path(os.path.expanduser(config.path))
            self._base = str(self._path.parent)
        self._image_folder = config.image_folder
        if config.image_folder is not None:
            self._base = os.path.expanduser(config.image_folder).rstrip("/") or "/"
        self.is_remote = is_remote(self._base)
        self._files = LocalFiles()
        self._text: str | None = None
        self._stamps: dict[int, bytes] = {}
        self.passed_over: Mapping[str, int] = {}
        try:
            check_plain(self._path)
            self._places = self._find_records()
        except FileNotFoundError as error:
            raise UsageError(f"no such data file: {self._path}") from error
        except OSError as error:
            raise UsageError(f"cannot read {self._path}: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"cannot read {self._path}: {error}") from error
        self._shards = cut(len(self))
        self.shard_lengths: Sequence[int] = [len(shard) for shard in self._shards]

    def __len__(self) -> int:
        return len(self._places)

    def read(self, position: int) -> tuple[str, Mapping[str, bytes], Mapping[str, Any]]:
        """Returns key, images by role, and fields of one record.

        Raises:
            ValueError: if the record is not a JSON object, or names a file that is not an image.
            OSError: if one of its images cannot be read.
            UsageError: if a remote image cannot be reached.
        """
        row = self._row(position)
        files, fields = take_images(row, lambda one: read_reference(one, self._base))
        name = fields.get("id")
        return str(position if name is None else name), files, fields

    def files(self) -> Iterator[str]:
        """Yields the list if it is local, and the local images that it names."""
        if not self._is_copy:
            yield str(self._path)
        yield from self._images(range(len(self)))

    def _images(self, positions: Iterable[int]) -> Iterator[str]:
        named: list[str] = []

        def note(reference: object) -> bytes:
            with suppress(ValueError, OSError):
                named.append(file_of(reference, self._base))
            return b""

        for position in () if self.is_remote else positions:
            with suppress(ValueError):  # a bad record
                take_images(self._row(position), note)
            yield from named
            named.clear()

    def fingerprint(self) -> str:
        """Returns a hash of the list, its image folder, and the images' sizes and times.

        Changes of remote images, or of the images of a very long list, are not detected.
        """
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        if self._image_folder is not None:
            digest.update(self._base.encode())
        for number in range(len(self._shards)):
            digest.update(self._stamps_of(number))
        return digest.hexdigest()[:32]

    def shard_fingerprint(self, number: int) -> str:
        """Returns such a hash of the records of a shard, as they stand in the list."""
        digest = hashlib.sha256(self._base.encode() if self._image_folder is not None else b"")
        shard = self._shards[number]
        digest.update(self._between(*self._places[shard.start : shard.stop].flat[[0, -1]].tolist()))
        digest.update(self._stamps_of(number))
        return digest.hexdigest()[:32]

    def _stamps_of(self, number: int) -> bytes:
        if number not in self._stamps:  # computed once, because it takes seconds
            images = self._images(self._shards[number]) if len(self) <= _MOST_STAMPED else ()
            self._stamps[number] = "".join(map(file_stamp, images)).encode()
        return self._stamps[number]

    def _row(self, position: int) -> dict[str, Any]:
        try:
            row = load_json(self._raw(position))
        except ValueError as error:
            raise ValueError(f"record {position} of {self._path}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"record {position} of {self._path} is not a JSON object")
        return row

    def _raw(self, position: int) -> str:
        start, stop = self._places[position].tolist()
        if self._text is not None:
            return self._text[start:stop]
        return decode_text(self._between(start, stop), "utf-8")

    def _between(self, start: int, stop: int) -> bytes:
        """Returns a piece of the list; the numbers are those of `_places`."""
        if self._text is not None:
            return self._text[start:stop].encode(errors="surrogatepass")
        return self._files.read(str(self._path), start, stop - start)

    def _find_records(self) -> NDArray[np.int64]:
        """Returns start and end of each record [records, 2], in bytes or as indices of `_text`."""
        with self._path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        what = store_of(head)
        if what is not None:
            raise ValueError(f"it is {what}")
        is_huge = self._path.stat().st_size > _MAX_TEXT_BYTES and not self._is_list_by_name()
        if not has_wide_text(head) and (is_huge or self._has_lines()):
            return self._find_lines()
        try:
            text = decode_text(self._path.read_bytes())
            places, other_arrays = _records_in(text)
        except ValueError as error:
            if not self._is_list_by_name() and not has_wide_text(head):
                return self._find_lines()  # then each damaged line is a bad record
            if isinstance(error, json.JSONDecodeError):
                raise ValueError(f"not valid JSON: {reason_of(error)}") from error
            raise
        if places is None and self._is_list_by_name():
            raise ValueError(
                "it must hold a JSON list of records; name it .jsonl if each line is one"
            )
        if places is None:
            return self._find_lines()
        self._text = text
        self.passed_over = {
            f"another array next to that of the records: {name!r}": 1 for name in other_arrays
        }
        return np.array(places, dtype=np.int64).reshape(-1, 2)

    def _is_list_by_name(self) -> bool:
        return self._path.suffix.lower() == ".json"

    def _has_lines(self) -> bool:
        """Returns whether each line is a record: the first is a JSON object, and others follow.

        A single object may instead hold the list in one of its fields.
        """
        with self._path.open("rb") as file:
            lines = (line for line in file if line.strip(b"\xef\xbb\xbf \t\r\n"))
            first = next(lines, b"")
            if not first.lstrip(b"\xef\xbb\xbf \t").startswith(b"{"):
                return not first and not self._is_list_by_name()
            try:
                is_one = len(values_in(decode_text(first, "utf-8"))) == 1
            except ValueError:
                return False
            return is_one and next(lines, None) is not None

    def _find_lines(self) -> NDArray[np.int64]:
        """Returns start and end of every line that is not blank [lines, 2]."""
        places = []
        offset = 0
        with self._path.open("rb") as lines:
            for line in lines:
                if line.strip():
                    places.append((offset, offset + len(line)))
                offset += len(line)
        return np.array(places, dtype=np.int64).reshape(-1, 2)


def _records_in(text: str) -> tuple[list[Place] | None, list[str]]:
    """Returns the places of the records in a text, and the keys of other arrays next to them.

    The places are None if the text is one JSON object without a list of records.
    """
    values = values_in(text)
    if not values:
        raise json.JSONDecodeError("Expecting value", text, 0)
    if len(values) > 1:
        return values, []
    (place,) = values
    if text[place[0]] == "[":
        return elements_in(text, place), []
    if text[place[0]] != "{":
        return None, []
    members = members_in(text, place)
    arrays = [name for name, (start, _) in members.items() if text[start] == "["]
    if "images" in members and "annotations" in arrays:
        raise ValueError(
            "it holds COCO annotations; write one record per image, with its path and captions"
        )
    if _RECORD_NAMES & members.keys():
        return [place], []
    inner = [name for name in _LIST_NAMES if name in arrays]
    if len(inner) != 1:
        return None, []
    arrays.remove(inner[0])
    return elements_in(text, members[inner[0]]), arrays


def _local_copy(path: str) -> Path:
    """Returns a local copy of a remote list, which is fetched again when the list changes."""
    stamp = files_of(path).stamp(path)
    suffix = next((one for one in JSON_SUFFIXES if path.lower().endswith(one)), ".jsonl")
    tag = hashlib.sha256(f"{stamp.size}/{stamp.tag}".encode()).hexdigest()[:8]
    copy = private_path(path, f".{tag}{suffix}")
    if not copy.exists():
        say(f"fetching {path} ({stamp.size / 1e6:.1f} MB)")
        copy.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(copy, is_shared=True) as scratch, scratch.open("wb") as file:
            for offset in range(0, stamp.size, _FETCH_BYTES):
                size = min(_FETCH_BYTES, stamp.size - offset)
                file.write(files_of(path).read(path, offset, size))
    return copy
