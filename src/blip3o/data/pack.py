"""Packs folders and lists into tar shards: `blip3o data pack`."""

import dataclasses
import functools
import glob
import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from blip3o.core.errors import UsageError, reason_of
from blip3o.core.files import atomic_file, write_atomic
from blip3o.core.lock import locked
from blip3o.data.parallel import in_processes
from blip3o.data.sources import Source, SourceConfig
from blip3o.data.sources.folder import FolderSource
from blip3o.data.sources.shards import INDEX_SUFFIX, make_index
from blip3o.data.walk import source_config
from blip3o.imaging.kinds import format_of
from blip3o.imaging.load import open_image

_ENDINGS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
"""Image formats whose bytes are kept, with their file endings."""
_SKIPPED_SUFFIX = ".skipped.jsonl"
_SHOWN = 5
"""Number of reasons for left-out records that the summary names."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Result of packing.

    Args:
        shards: the shards in order.
        num_records: number of records in the source.
        left_out: number of records that could not be packed, by reason.
        passed_over: number of the source's files that are not records, by reason.
        notes: the files that list the left-out records.
    """

    shards: list[Path]
    num_records: int
    left_out: Mapping[str, int]
    passed_over: Mapping[str, int]
    notes: list[Path]

    def text(self) -> str:
        """Returns a summary: the shards, the number of records, and the reasons for omissions."""
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
    leave_out: Mapping[int, str] = MappingProxyType({}),
) -> Packed:
    """Writes the records of a source to `OUT/NAME-000000.tar`, ... with their indices.

    PNG, JPEG and WebP images keep their bytes; other formats become PNG. A record that cannot be
    read is left out and listed in `NAME-000000.skipped.jsonl`. The written bytes depend only on
    the data. Each shard is renamed into place when it is complete, so the same call resumes an
    interrupted one. A second call at the same time waits for the first. The record's JSON keeps
    its original name: `file_name` for an image of a folder, else `id`.

    Args:
        path: a folder of images, a JSON list, or shards to cut again.
        out: folder for the shards; created if missing.
        name: name of the shards; None takes the source's name.
        shard_size: number of source records per shard.
        jobs: number of processes.
        image_folder: folder that the image paths of a list start from; None is the list's folder.
        leave_out: positions of intact records to leave out, with the reasons; they are listed like
            those that cannot be read.

    Raises:
        UsageError: if there is no data at the path, no record can be packed, a number is out of
            range, the folder holds shards of that name packed with other settings, or the folder
            is not writable.
    """
    if shard_size < 1 or jobs < 1:
        raise UsageError("--shard-size and --jobs must be at least 1")
    if name is not None and Path(name).name != name:
        raise UsageError(f"--name {name!r} is not a file name; give the folder with --out")
    config = source_config(path, salvage=True, image_folder=image_folder)
    source = config.build()
    if not len(source):
        raise UsageError(f"no records in {path}")
    base = out / (name or source.name)
    settings = {"data": source.fingerprint(), "shard_size": shard_size}
    if leave_out:
        text = json.dumps(sorted(leave_out.items()))
        settings["leave_out"] = hashlib.sha256(text.encode()).hexdigest()
    if isinstance(source, FolderSource):  # `fingerprint` leaves out texts, but shards hold them
        settings["texts"] = source.texts_fingerprint()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(base.with_name(f".{base.name}.pack.lock")):
            shards = _write_shards(
                base, config, source, settings, shard_size, jobs, dict(leave_out)
            )
            return _summary(path, base, source, shards)
    except OSError as error:  # from writing: errors of reading are caught for each record
        raise UsageError(f"cannot write {base}-*.tar: {reason_of(error)}") from error


def _write_shards(
    base: Path,
    config: SourceConfig,
    source: Source,
    settings: dict[str, Any],
    shard_size: int,
    jobs: int,
    leave_out: Mapping[int, str],
) -> list[Path]:
    """Writes the missing shards and returns all of them."""
    _check_settings(base, settings)
    starts = range(0, len(source), shard_size)
    shards = [Path(f"{base}-{number:06d}.tar") for number in range(len(starts))]
    work = [
        (shard, range(start, min(start + shard_size, len(source))))
        for shard, start in zip(shards, starts, strict=True)
        if not shard.exists()
    ]
    write = functools.partial(_write_shard, source=source, leave_out=leave_out)
    if jobs > 1 and len(work) > 1:
        write = functools.partial(_open_and_write, config=config, leave_out=leave_out)
    for _ in in_processes(write, work, jobs, f"packing {source.name}"):
        pass
    return shards


def _summary(path: str, base: Path, source: Source, shards: list[Path]) -> Packed:
    """Returns the result; if no record was packed, removes the shards and raises UsageError."""
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


def _open_and_write(
    work: tuple[Path, range], *, config: SourceConfig, leave_out: Mapping[int, str]
) -> None:
    _write_shard(work, config.build(), leave_out)


def _write_shard(work: tuple[Path, range], source: Source, leave_out: Mapping[int, str]) -> None:
    shard, positions = work
    with atomic_file(shard) as scratch:
        skipped = _write_members(scratch, positions, source, leave_out)
        notes = shard.with_suffix(_SKIPPED_SUFFIX)
        notes.unlink(missing_ok=True)
        if skipped:
            notes.write_text("".join(f"{line}\n" for line in skipped), encoding="utf-8")
    make_index(str(shard))


def _write_members(
    file: Path, positions: range, source: Source, leave_out: Mapping[int, str]
) -> list[str]:
    """Writes records to a tar and returns a line of JSON for each record that is left out."""
    skipped: list[str] = []
    with tarfile.open(file, "w", format=tarfile.GNU_FORMAT) as tar:
        for position in positions:
            key = "?"
            try:
                key, files, fields = source.read(position)
                if position in leave_out:
                    raise ValueError(leave_out[position])
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
    """Yields ending and bytes of each image; raises ValueError if an image is damaged."""
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
        info = tarfile.TarInfo(f"{key}.{suffix}")  # owner and time stay 0, so bytes are the same
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def _check_settings(base: Path, now: dict[str, Any]) -> None:
    """Refuses to mix two data sets under one name, or to reuse shards of unknown origin."""
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
            f"the shards {base}-*.tar are of unknown origin: move them away, or give the new ones "
            "another --name"
        )
    if before != now:
        raise UsageError(
            f"{base}-*.tar were packed from other data or with another --shard-size; give the new "
            "ones another --name"
        )


def _settings_file(base: Path) -> Path:
    return base.with_name(f"{base.name}.pack.json")
