"""Applies a function to every record of a source, in several processes."""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from blip3o.core.errors import UsageError
from blip3o.data.parallel import in_processes
from blip3o.data.sources import SOURCES, Source, SourceConfig
from blip3o.data.sources.files import is_remote
from blip3o.data.sources.jsonl import JSON_SUFFIXES
from blip3o.data.sources.names import IMAGE_SUFFIXES
from blip3o.imaging.kinds import HEAD_BYTES, store_of

T = TypeVar("T")
ChunkFunction = Callable[[Source, range], T]
"""A function of a chunk of records; it must be picklable for other processes."""

CHUNK_RECORDS = 256

_opened: dict[SourceConfig, Source] = {}


def source_config(
    path: str, *, salvage: bool = False, image_folder: str | None = None
) -> SourceConfig:
    """Returns the config of the data at a path, recognized by its name and first bytes.

    Args:
        path: a folder of images, a list of records or tar shards; local or remote.
        salvage: whether the intact records of damaged shards are used.
        image_folder: folder that the image paths of a list start from; None is the list's folder.

    Raises:
        UsageError: for a file of another kind, such as Parquet.
    """
    path = path if is_remote(path) else os.path.expanduser(path)
    name = Path(path.rstrip("/")).name.partition(".")[0].rstrip("*?-_{}[]0123456789") or "data"
    if not is_remote(path) and os.path.isdir(path):
        return SOURCES.get("folder")(path=path, name=name)
    if path.lower().endswith(IMAGE_SUFFIXES) and os.path.exists(path):
        raise UsageError(f"{path} is an image; give the folder that holds it")
    if path.lower().endswith(JSON_SUFFIXES) or _begins_as_json(path):
        return SOURCES.get("jsonl")(path=path, name=name, image_folder=image_folder)
    return SOURCES.get("webdataset")(path=path, name=name, salvage=salvage)


def _begins_as_json(path: str) -> bool:
    """Returns whether a local file begins like JSON; UsageError for kinds that are not read."""
    if is_remote(path) or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if head[257:262] == b"ustar":  # a tar begins with a file name, which may look like JSON
        return False
    what = store_of(head)
    if what is None and path.lower().endswith((".csv", ".tsv")):
        what = "a table; write its rows as JSON lines, or as metadata.csv next to the images"
    if what is not None:
        raise UsageError(f"{path} is {what}")
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[") and b"\0" not in head


def walk(config: SourceConfig, function: ChunkFunction[T], *, jobs: int, what: str) -> Iterator[T]:
    """Returns the results of a function for all chunks of records, in order.

    Args:
        config: the source's config; its shards are already indexed.
        function: the function.
        jobs: number of processes.
        what: short label for the progress display.

    Raises:
        UsageError: if the source cannot be read at all, or `jobs` is below 1.
    """
    if jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {jobs}")
    source = config.build()
    chunks = [
        range(start, min(start + CHUNK_RECORDS, len(source)))
        for start in range(0, len(source), CHUNK_RECORDS)
    ]
    apply = functools.partial(function, source)
    if jobs > 1 and len(chunks) > 1:
        apply = functools.partial(_apply, config, function)
    return in_processes(apply, chunks, jobs, what)


def _apply(config: SourceConfig, function: ChunkFunction[T], chunk: range) -> T:
    if config not in _opened:
        _opened[config] = config.build()
    return function(_opened[config], chunk)
