"""Reads scores that other tools have written, such as NeMo Curator and data-juicer.

Each row belongs to a draft or to an image file. A column of `KEYS` says which: it holds the name of
the draft or the sha256 of the image, or the name or path of a file that is called so. All numbers
of the row are scores, also those in mappings:

    {"id": "00000012", "perplexity": 31.5}                          about draft 12, so its text
    {"image": "images/5f/5f3a...", "aesthetic_score": 6.1}          about an image
    {"images": ["5f3a...png"], "__dj__stats__": {"image_nsfw_score": [0.01]}}       data-juicer
    {"image_id": "5f3a...", "metadata": "{'aesthetic_score': 6.1}"}                 NeMo Curator

data-juicer leaves the scores out of its data file and writes them to `NAME_stats.jsonl` without
keys. The keys are then read from the same lines of `NAME.jsonl`.
"""

import ast
import dataclasses
import functools
import glob
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from blip3o.core.errors import UsageError, reason_of
from blip3o.core.files import file_sha256

KEYS = ("key", "__key__", "id", "image_id", "name", "sha256", "image", "images")
"""Columns that may hold the key of a row; the first that holds one counts."""
_DRAFT = re.compile(r"\d{8}")
_IMAGE = re.compile(r"[0-9a-f]{64}")
_STATS = "_stats.jsonl"


@dataclasses.dataclass(frozen=True)
class FileScores:
    """Scores by key and name.

    Args:
        drafts: scores of the drafts by the name of the draft.
        images: scores of the images by sha256.
    """

    drafts: Mapping[str, Mapping[str, float]]
    images: Mapping[str, Mapping[str, float]]

    @functools.cached_property
    def of_drafts(self) -> frozenset[str]:
        """Names of the scores of drafts."""
        return frozenset(name for scores in self.drafts.values() for name in scores)

    @functools.cached_property
    def of_images(self) -> frozenset[str]:
        """Names of the scores of images."""
        return frozenset(name for scores in self.images.values() for name in scores)


def fingerprint_of(paths: Sequence[str]) -> str:
    """Returns a hash of the content of score files; empty for no files.

    Args:
        paths: files or patterns.

    Raises:
        UsageError: if a file cannot be read.
    """
    if not paths:
        return ""
    try:
        hashes = [file_sha256(one) for file in _files(paths) for one in (file, *_partner(file))]
    except OSError as error:
        raise UsageError(f"cannot read {error.filename}: {reason_of(error)}") from error
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


@functools.lru_cache(maxsize=1)
def read_scores(paths: tuple[str, ...], fingerprint: str) -> FileScores:
    """Returns the scores of files, which are read once for all units of a stage.

    Args:
        paths: JSON-lines or Parquet files, or patterns of them.
        fingerprint: `fingerprint_of` them; another one reads them again.

    Raises:
        UsageError: if a file cannot be read, a row has no key, or two rows contradict each other.
    """
    drafts: dict[str, dict[str, float]] = {}
    images: dict[str, dict[str, float]] = {}
    for file in _files(paths):
        for number, row in enumerate(_rows(file), start=1):
            key = _key(row)
            if key is None:
                raise UsageError(
                    f"row {number} of {file} names neither a draft (00000012) nor the sha256 of an "
                    f"image in one of the columns {', '.join(KEYS)}"
                )
            table = drafts if _DRAFT.fullmatch(key) else images
            scores = table.setdefault(key, {})
            for name, value in _numbers(row):
                if scores.setdefault(name, value) != value:
                    raise UsageError(f"row {number} of {file}: {key} has two values of {name}")
    return FileScores(drafts, images)


def _files(paths: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        found = [path] if Path(path).exists() else sorted(glob.glob(path))
        if not found:
            raise UsageError(f"no such score file: {path}")
        files += map(Path, found)
    return files


def _partner(file: Path) -> list[Path]:
    """Returns the data file of data-juicer whose lines have the keys of a file, if there is one."""
    data = file.with_name(file.name.removesuffix(_STATS) + ".jsonl")
    return [data] if file.name.endswith(_STATS) and data.is_file() else []


def _rows(file: Path) -> Iterator[Mapping[str, Any]]:
    if file.suffix == ".parquet":
        yield from _parquet_rows(file)
        return
    parts = [_lines(one) for one in (*_partner(file), file)]
    try:
        for rows in zip(*parts, strict=True):
            yield {name: value for row in rows for name, value in row.items()}
    except ValueError as error:
        raise UsageError(f"{file} and its data file differ in the number of lines") from error


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                row = _json(line)
                if not isinstance(row, dict):
                    raise UsageError(f"line {number} of {file} is not a JSON object")
                yield row
    except OSError as error:
        raise UsageError(f"cannot read {file}: {reason_of(error)}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not JSON lines: give a .jsonl or .parquet file") from error


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        message = f"{file} needs pyarrow; install it: pip install 'blip3o[curate]'"
        raise UsageError(message) from error
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches():
                yield from batch.to_pylist()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {reason_of(error)}") from error
    except pyarrow.ArrowException as error:
        raise UsageError(f"{file} is not a Parquet file, or is damaged") from error


def _key(row: Mapping[str, Any]) -> str | None:
    """Returns the name of a draft or the sha256 of an image that a row is about."""
    for column in KEYS:
        value = row.get(column)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, str):
            stem = Path(value).stem
            if _DRAFT.fullmatch(stem) or _IMAGE.fullmatch(stem):
                return stem
    return None


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the names and values of the numbers of a row that are finite.

    A list of one number is that number: data-juicer has lists with an item for each image.
    """
    for name, value in row.items():
        if isinstance(value, str) and value.startswith("{"):
            value = _mapping(value)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, int | float) and math.isfinite(value):
            yield name, float(value)


def _mapping(text: str) -> object:
    """Returns the mapping that a text holds, in JSON or in Python as NeMo Curator writes it."""
    value = _json(text)
    if value is not None:
        return value
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None  # a text that begins with a brace


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
