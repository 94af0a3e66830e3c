"""Packs folders and lists into tar shards: `blip3o data pack`."""

import functools
import io
import json
import multiprocessing
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blip3o.core.errors import UsageError
from blip3o.core.files import atomic_file, write_atomic
from blip3o.core.log import progress
from blip3o.data.sources import Source
from blip3o.data.sources.folder import FolderSource
from blip3o.data.sources.shards import make_index
from blip3o.data.walk import source_config
from blip3o.imaging.kinds import format_of
from blip3o.imaging.load import open_image

_ENDINGS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


def pack(path: str, out: Path, *, name: str | None, shard_size: int, jobs: int) -> list[Path]:
    """Writes the records of a source to `OUT/NAME-000000.tar`, ... with their indices.

    Pictures keep their bytes, other kinds than PNG, JPEG and WebP become PNG. A record that cannot
    be read is left out and named in `NAME-000000.skipped.jsonl`. The bytes depend on the data
    alone. Each shard is renamed into place when whole, so the same call goes on where it stopped.

    Args:
        path: a folder of pictures, a JSON list, or shards to be cut anew.
        out: folder for the shards; created if missing.
        name: what shards are called; that of the source if None.
        shard_size: records of the source a shard.
        jobs: processes.

    Returns:
        The shards in order.

    Raises:
        UsageError: if there is no data at the path, a number is out of range, or the folder holds
            shards of that name that were packed otherwise.
    """
    if shard_size < 1 or jobs < 1:
        raise UsageError("--shard-size and --jobs must be at least 1")
    config = source_config(path, salvage=True)
    source: Source = config.build()
    if not len(source):
        raise UsageError(f"no record in {path}")
    base = out / (name or source.name)
    settings = {"data": source.fingerprint(), "shard_size": shard_size}
    if isinstance(source, FolderSource):  # features do not depend on its texts, shards do
        settings["texts"] = source.texts_fingerprint()
    _check_settings(base, settings)
    starts = range(0, len(source), shard_size)
    shards = [Path(f"{base}-{number:06d}.tar") for number in range(len(starts))]
    work = [
        (shard, range(start, min(start + shard_size, len(source))))
        for shard, start in zip(shards, starts, strict=True)
        if not shard.exists()
    ]
    if jobs == 1 or len(work) <= 1:
        for one in progress(work, what=f"packing {source.name}"):
            _write_shard(one, source)
    else:
        # Forked processes would inherit torch's threads in an unknown state.
        with multiprocessing.get_context("spawn").Pool(min(jobs, len(work))) as pool:
            done = pool.imap_unordered(functools.partial(_open_and_write, config=config), work)
            for _ in progress(done, total=len(work), what=f"packing {source.name}"):
                pass
    return shards


def _open_and_write(work: tuple[Path, range], *, config: Any) -> None:  # noqa: ANN401
    _write_shard(work, config.build())


def _write_shard(work: tuple[Path, range], source: Source) -> None:
    shard, positions = work
    with atomic_file(shard) as scratch:
        skipped = _write_members(scratch, positions, source)
        if skipped:
            notes = shard.with_suffix(".skipped.jsonl")
            notes.write_text("".join(f"{line}\n" for line in skipped), encoding="utf-8")
    make_index(str(shard))


def _write_members(file: Path, positions: range, source: Source) -> list[str]:
    """Writes records to a tar; returns a line of JSON for each one that cannot be read."""
    skipped: list[str] = []
    with tarfile.open(file, "w", format=tarfile.GNU_FORMAT) as tar:
        for position in positions:
            key = "?"
            try:
                key, files, fields = source.read(position)
                members = [(_picture_name(role, *_packed(data))) for role, data in files.items()]
            except (ValueError, OSError, UsageError) as error:
                reason = " ".join(str(error).split())
                skipped.append(json.dumps({"key": key, "position": position, "reason": reason}))
                continue
            members.append(("json", json.dumps(fields).encode()))
            _add(tar, f"{position:09d}", members)
    return skipped


def _packed(data: bytes) -> tuple[str, bytes]:
    """Returns the ending of a picture and its bytes; UsageError if it cannot be read whole."""
    picture = open_image(data)
    kind = format_of(data)
    if kind in _ENDINGS:
        return _ENDINGS[kind], data
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "png", buffer.getvalue()


def _picture_name(role: str, ending: str, data: bytes) -> tuple[str, bytes]:
    return (ending if role == "image" else f"{role}.{ending}"), data


def _add(tar: tarfile.TarFile, key: str, members: Iterable[tuple[str, bytes]]) -> None:
    for suffix, data in members:
        info = tarfile.TarInfo(f"{key}.{suffix}")  # owner, group and time are 0: equal bytes
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def _check_settings(base: Path, now: dict[str, Any]) -> None:
    """Refuses to mix two data sets under one name."""
    base.parent.mkdir(parents=True, exist_ok=True)
    file = base.with_name(f"{base.name}.pack.json")
    if file.exists():
        if json.loads(file.read_text(encoding="utf-8")) != now:
            raise UsageError(f"{base}-*.tar were packed from other data or in other sizes; --name")
        return
    write_atomic(file, json.dumps(now))
