"""Packs folders and lists into tar shards: `blip3o data pack`."""

import dataclasses
import functools
import glob
import io
import json
import multiprocessing
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from blip3o.core.errors import UsageError, reason_of
from blip3o.core.files import atomic_file, write_atomic
from blip3o.core.lock import locked
from blip3o.core.log import progress
from blip3o.data.sources import Source
from blip3o.data.sources.folder import FolderSource
from blip3o.data.sources.shards import INDEX_SUFFIX, make_index
from blip3o.data.walk import source_config
from blip3o.imaging.kinds import format_of
from blip3o.imaging.load import open_image

_ENDINGS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
"""Kinds of images whose bytes are kept, and how they are called."""
_SKIPPED_SUFFIX = ".skipped.jsonl"
_SHOWN = 5
"""Reasons that are named of those for which records are left out."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """What packing made.

    Args:
        shards: the shards in order.
        num_records: how many records the source has.
        left_out: how many records could not be packed, by reason.
        passed_over: the source's files that are no records, by reason.
        notes: the files that name the records left out.
    """

    shards: list[Path]
    num_records: int
    left_out: Mapping[str, int]
    passed_over: Mapping[str, int]
    notes: list[Path]

    def text(self) -> str:
        """Returns what was written, and how much was left out and why."""
        num_left_out = sum(self.left_out.values())
        num_packed = self.num_records - num_left_out
        many = f" to {self.shards[-1].name}" if len(self.shards) > 1 else ""
        lines = [
            f"{len(self.shards)} shards: {self.shards[0]}{many}",
            f"{num_packed} of {self.num_records} records packed",
        ]
        if num_left_out:
            lines[-1] += f"; {num_left_out} left out, see {', '.join(map(str, self.notes[:3]))}"
        reasons = [f"{count:8d}  left out: {reason}" for reason, count in self.left_out.items()]
        lines += reasons[:_SHOWN] + [f"{'':8s}  ..."] * (len(reasons) > _SHOWN)
        lines += [f"{count:8d}  passed over: {why}" for why, count in self.passed_over.items()]
        return "\n".join(lines)


def pack(
    path: str,
    out: Path,
    *,
    name: str | None,
    shard_size: int,
    jobs: int,
    image_folder: str | None = None,
) -> Packed:
    """Writes the records of a source to `OUT/NAME-000000.tar`, ... with their indices.

    Images keep their bytes, other kinds than PNG, JPEG and WebP become PNG. A record that cannot
    be read is left out and named in `NAME-000000.skipped.jsonl`. The bytes depend on the data
    alone. Each shard is renamed into place when whole, so the same call goes on where it stopped,
    and a second call at the same time waits for the first. The name that a record had stands in its
    JSON: `file_name` of a folder's image, else `id`.

    Args:
        path: a folder of images, a JSON list, or shards to be cut anew.
        out: folder for the shards; created if missing.
        name: what shards are called; that of the source if None.
        shard_size: records of the source a shard.
        jobs: processes.
        image_folder: where the image paths of a list start; None is its own folder.

    Raises:
        UsageError: if there is no data at the path or no record that can be packed, a number is
            out of range, the folder holds shards of that name that were packed otherwise, or it
            cannot be written to.
    """
    if shard_size < 1 or jobs < 1:
        raise UsageError("--shard-size and --jobs must be at least 1")
    if name is not None and Path(name).name != name:
        raise UsageError(f"--name {name!r} is no name of a file; --out takes the folder")
    config = source_config(path, salvage=True, image_folder=image_folder)
    source: Source = config.build()
    if not len(source):
        raise UsageError(f"no record in {path}")
    base = out / (name or source.name)
    settings = {"data": source.fingerprint(), "shard_size": shard_size}
    if isinstance(source, FolderSource):  # features do not depend on its texts, shards do
        settings["texts"] = source.texts_fingerprint()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(base.with_name(f".{base.name}.pack.lock")):
            shards = _write_shards(base, config, source, settings, shard_size, jobs)
            return _summary(path, base, source, shards)
    except OSError as error:  # those of reading are caught record by record
        raise UsageError(f"cannot write {base}-*.tar: {reason_of(error)}") from error


def _write_shards(
    base: Path,
    config: Any,  # noqa: ANN401  (a source's config)
    source: Source,
    settings: dict[str, Any],
    shard_size: int,
    jobs: int,
) -> list[Path]:
    """Writes what is missing; returns all shards."""
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


def _summary(path: str, base: Path, source: Source, shards: list[Path]) -> Packed:
    """Returns what was packed; UsageError, and no shards, if that is nothing."""
    left_out: Counter[str] = Counter()
    notes = [note for shard in shards if (note := shard.with_suffix(_SKIPPED_SUFFIX)).exists()]
    for note in notes:
        try:
            lines = note.read_text(encoding="utf-8").splitlines()
            left_out.update(str(json.loads(line)["reason"]) for line in lines)
        except (ValueError, KeyError, TypeError) as error:
            shard = note.with_name(note.name.removesuffix(_SKIPPED_SUFFIX) + ".tar")
            raise UsageError(
                f"{note} is damaged: remove it and {shard.name}, and run the same command again"
            ) from error
    if left_out.total() >= len(source):
        for shard in shards:
            shard.unlink(missing_ok=True)
            shard.with_name(shard.name + INDEX_SUFFIX).unlink(missing_ok=True)
        _settings_file(base).unlink(missing_ok=True)
        reason, count = left_out.most_common(1)[0]
        raise UsageError(
            f"no record of {path} can be packed: {left_out.total()} of {len(source)} left out, "
            f"{count} of them for: {reason}; see {notes[0]}"
        )
    return Packed(
        shards=shards,
        num_records=len(source),
        left_out=dict(left_out.most_common()),
        passed_over=source.passed_over,
        notes=notes,
    )


def _open_and_write(work: tuple[Path, range], *, config: Any) -> None:  # noqa: ANN401
    _write_shard(work, config.build())


def _write_shard(work: tuple[Path, range], source: Source) -> None:
    shard, positions = work
    with atomic_file(shard) as scratch:
        skipped = _write_members(scratch, positions, source)
        notes = shard.with_suffix(_SKIPPED_SUFFIX)
        notes.unlink(missing_ok=True)
        if skipped:
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
                members = list(_image_members(files))
            except (ValueError, OSError) as error:
                reason = " ".join(str(error).split())
                skipped.append(json.dumps({"key": key, "position": position, "reason": reason}))
                continue
            label = "file_name" if isinstance(source, FolderSource) else "id"
            named = {} if key == str(position) else {label: key}
            members.append(("json", json.dumps({**named, **fields}).encode()))
            _add(tar, f"{position:09d}", members)
    return skipped


def _image_members(files: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Yields ending and bytes of each image; ValueError if one cannot be read whole."""
    for role, data in files.items():
        try:
            image = open_image(data)
        except UsageError as error:
            raise ValueError(f"{role}: {error}") from error
        ending = _ENDINGS.get(format_of(data) or "")
        if ending is None:
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            ending, data = "png", buffer.getvalue()
        yield ending if role == "image" else f"{role}.{ending}", data


def _add(tar: tarfile.TarFile, key: str, members: Iterable[tuple[str, bytes]]) -> None:
    for suffix, data in members:
        info = tarfile.TarInfo(f"{key}.{suffix}")  # owner, group and time are 0: equal bytes
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def _check_settings(base: Path, now: dict[str, Any]) -> None:
    """Refuses to mix two data sets under one name, or to take strange shards for packed ones."""
    file = _settings_file(base)
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not any(base.parent.glob(f"{glob.escape(base.name)}-*.tar")):
            write_atomic(file, json.dumps(now))
            return
        before = None
    except ValueError:  # damaged
        before = None
    if before is None:
        raise UsageError(
            f"nothing says of which data the shards {base}-*.tar are: move them away, or give the "
            "new ones another --name"
        )
    if before != now:
        raise UsageError(
            f"{base}-*.tar were packed from other data or in other sizes; give the new ones "
            "another --name"
        )


def _settings_file(base: Path) -> Path:
    return base.with_name(f"{base.name}.pack.json")
