"""Goes through every record of a source, in several processes, and hands back what was found."""

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from blip3o.core.errors import UsageError
from blip3o.core.log import progress
from blip3o.data.sources import SOURCES, Source
from blip3o.data.sources.files import is_remote
from blip3o.data.sources.jsonl import JSON_SUFFIXES
from blip3o.data.sources.kinds import IMAGE_SUFFIXES
from blip3o.imaging.kinds import HEAD_BYTES, store_of

T = TypeVar("T")
Look = Callable[[Source, range], T]
"""What is done with some records; a function of a module, for it travels to other processes."""

CHUNK_RECORDS = 256

_opened: dict[Any, Source] = {}


def source_config(path: str, *, salvage: bool = False, image_folder: str | None = None) -> Any:  # noqa: ANN401  (a source's config)
    """Returns the config of the data at a path, by its name and its first bytes.

    Args:
        path: a folder of images, a list of records, or else tar shards; local or remote.
        salvage: take the whole records of damaged shards.
        image_folder: where the image paths of a list start; None is its own folder.

    Raises:
        UsageError: for a file that holds none of them, such as Parquet.
    """
    path = path if is_remote(path) else os.path.expanduser(path)
    name = Path(path.rstrip("/")).name.partition(".")[0].rstrip("*?-_{}[]0123456789") or "data"
    if not is_remote(path) and os.path.isdir(path):
        return SOURCES.get("folder")(path=path, name=name)
    if path.lower().endswith(IMAGE_SUFFIXES) and os.path.exists(path):
        raise UsageError(f"{path} is an image; name the folder that it is in")
    if path.lower().endswith(JSON_SUFFIXES) or _begins_as_json(path):
        return SOURCES.get("jsonl")(path=path, name=name, image_folder=image_folder)
    return SOURCES.get("webdataset")(path=path, name=name, salvage=salvage)


def _begins_as_json(path: str) -> bool:
    """Returns whether a local file of another name than a list's holds JSON."""
    if is_remote(path) or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if head[257:262] == b"ustar":  # a tar: its first bytes are a name, and may be any
        return False
    what = store_of(head)
    if what is None and path.lower().endswith((".csv", ".tsv")):
        what = "a table; write its rows as JSON lines, or as metadata.csv beside the images"
    if what is not None:
        raise UsageError(f"{path} is {what}")
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[") and b"\0" not in head


def walk(config: Any, look: Look[T], *, jobs: int, what: str) -> Iterator[T]:  # noqa: ANN401
    """Yields what a function returns for each chunk of records, in order.

    Args:
        config: a source's config; its shards are indexed already.
        look: what to do with a chunk.
        jobs: processes.
        what: a word or two for the progress.

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
    if jobs == 1 or len(chunks) == 1:
        yield from progress((look(source, chunk) for chunk in chunks), total=len(chunks), what=what)
        return
    work = zip(itertools.repeat(config), itertools.repeat(look), chunks, strict=False)
    # Forked processes would inherit torch's threads in an unknown state.
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(chunks))) as pool:
        yield from progress(pool.imap(_look, work), total=len(chunks), what=what)


def _look(work: tuple[Any, Look[T], range]) -> T:
    config, look, chunk = work
    if config not in _opened:
        _opened[config] = config.build()
    return look(_opened[config], chunk)
