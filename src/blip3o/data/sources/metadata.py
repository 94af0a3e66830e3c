"""Captions in a list beside the images, as Hugging Face's `imagefolder` has them.

    metadata.jsonl    {"file_name": "in/a.png", "text": "a red cat"}
    metadata.csv      file_name,text

A file applies to the images of its own folder and of the folders in it; the nearest one counts.
"""

import csv
import dataclasses
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blip3o.core.errors import UsageError
from blip3o.data.sources.plain_files import read_plain
from blip3o.data.sources.strict_json import decode_text, load_json

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
"""Names of such files, in any case."""
_COLUMN = "file_name"
_MAX_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True, slots=True)
class MetadataRow:
    """What a metadata file says of one image.

    Args:
        file: the metadata file, relative to the folder.
        fields: its columns but the image's name.
    """

    file: str
    fields: dict[str, Any]


def read_metadata(base: Path, file: str) -> dict[str, list[MetadataRow]] | None:
    """Returns the rows of a metadata file by image.

    Args:
        base: the folder of images.
        file: the metadata file, relative to it.

    Returns:
        The rows of each image by its path relative to `base`; None if the file has no column
        `file_name`, so that it is about something else.

    Raises:
        UsageError: if the file cannot be read, or one of its lines is damaged.
    """
    try:
        text = decode_text(read_plain(base / file, _MAX_BYTES))
        if _COLUMN not in text:
            return None
        rows = _csv_rows(text) if file.lower().endswith(".csv") else _json_rows(text)
    except (ValueError, OSError, csv.Error) as error:
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
    """Returns the rows of the metadata files that are nearest to their image.

    Args:
        rows: all rows about one image.
    """
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
            raise ValueError(f"line {number} is no JSON object")
        rows.append(row)
    return rows


def _csv_rows(text: str) -> list[dict[str, Any]]:
    csv.field_size_limit(1 << 24)  # a long caption is no error
    head = text.partition("\n")[0]
    commas = (mark for mark in ",;\t" if _COLUMN in [c.strip(' "\r') for c in head.split(mark)])
    comma = next(commas, None)  # spreadsheets write semicolons in half of the world
    if comma is None:
        return []
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=comma)
    names = [name.strip() for name in reader.fieldnames or ()]
    if len(set(names)) < len(names):
        raise ValueError("two columns have the same name")
    reader.fieldnames = names
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(
                f"line {reader.line_num} has another number of columns than the first line; "
                f'text with {comma!r} stands in "..."'
            )
        rows.append({name: value for name, value in row.items() if value != ""})
    return rows
