"""Captions in a metadata file next to the images, as in Hugging Face's `imagefolder`.

    metadata.jsonl    {"file_name": "in/a.png", "text": "a red cat"}
    metadata.csv      file_name,text

A metadata file applies to the images of its folder and all subfolders. The nearest file counts.
"""

import csv
import dataclasses
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blip3o.core.errors import UsageError
from blip3o.core.texts import decode_text, load_json
from blip3o.data.sources.plain_files import read_plain
from blip3o.imaging.kinds import HEAD_BYTES, store_of

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
"""Names of metadata files, in any case."""
_COLUMN = "file_name"
_MAX_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True, slots=True)
class MetadataRow:
    """One row about an image.

    Args:
        file: the metadata file, relative to the folder of images.
        fields: all columns except the image's name.
    """

    file: str
    fields: dict[str, Any]


def read_metadata(base: Path, file: str) -> dict[str, list[MetadataRow]] | None:
    """Returns the rows of a metadata file by image; None if it has no column `file_name`.

    Paths of the file and of the images are relative to `base`, the folder of images.

    Raises:
        UsageError: if the file cannot be read or one of its lines is damaged.
    """
    try:
        data = read_plain(base / file, _MAX_BYTES)
        what = store_of(data[:HEAD_BYTES])
        if what is not None:
            raise ValueError(f"it is {what}")
        text = decode_text(data)
        if not re.search(_COLUMN, text, re.IGNORECASE):
            return None
        rows = _csv_rows(text) if file.lower().endswith(".csv") else _json_rows(text)
    except (ValueError, OSError) as error:
        raise UsageError(f"cannot read the captions in {base / file}: {error}") from error
    if not any(_COLUMN in row for row in rows):
        return None
    found: dict[str, list[MetadataRow]] = {}
    for number, row in enumerate(rows, 1):
        name = row.pop(_COLUMN, None)
        if not isinstance(name, str) or not name.strip():
            raise UsageError(f"row {number} of {base / file} has no {_COLUMN}")
        path = os.path.normpath(os.path.join(os.path.dirname(file), name.replace("\\", "/")))
        found.setdefault(path, []).append(MetadataRow(file, row))
    return found


def nearest(rows: Sequence[MetadataRow]) -> list[MetadataRow]:
    """Returns the rows of the metadata file that is nearest to the image."""
    deepest = max((row.file.count(os.sep) for row in rows), default=0)
    return [row for row in rows if row.file.count(os.sep) == deepest]


def _json_rows(text: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = load_json(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not a JSON object")
        rows.append(row)
    return rows


_SEPARATORS = ",;\t|"
"""Column separators; spreadsheets in many countries write semicolons."""
_BEFORE_HEAD = re.compile(r'(?:\s*[\r\n]|"?sep=.?"?[\r\n]+)*', re.IGNORECASE)
"""Blank lines, and the line with which Excel declares the separator."""


def _csv_rows(text: str) -> list[dict[str, Any]]:
    csv.field_size_limit(1 << 24)  # captions may be long
    text = _BEFORE_HEAD.sub("", text, count=1)
    head = text.splitlines()[0].lower()
    columns = ([name.strip(' "') for name in head.split(mark)] for mark in _SEPARATORS)
    used = (m for m, names in zip(_SEPARATORS, columns, strict=True) if _COLUMN in names)
    separator = next(used, None)
    if separator is None:
        return []
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    rows = []
    try:
        names = [name.strip() for name in next(reader)]
        names = [_COLUMN if name.lower() == _COLUMN else name for name in names]
        if len(set(names)) < len(names):
            raise ValueError("two columns have the same name")
        for values in reader:
            if values and len(values) != len(names):
                raise ValueError("its number of columns differs from that of the first line")
            if values:
                rows.append({k: v for k, v in zip(names, values, strict=True) if v != ""})
    except (csv.Error, ValueError) as error:
        raise ValueError(
            f'line {reader.line_num}: {error}; put text with {separator!r} in "...", and write "" '
            'for a " in it'
        ) from error
    return rows
