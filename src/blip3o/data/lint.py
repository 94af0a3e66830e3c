"""Finds what is wrong with a data set before a run does: `blip3o data lint`."""

import dataclasses
import functools
import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.core.types import Record
from blip3o.data.sources import Source
from blip3o.data.tasks import PICTURES, get_task
from blip3o.data.walk import source_config, walk
from blip3o.imaging.load import open_image

ODD = "odd picture"
"""A problem that a run reads over; all others cost a sample."""
_TEXTS = ("caption", "captions", "conversations", "text_conversations", "instruction")
_LONGEST_ASPECT = 4.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    Args:
        source: name of the data.
        key: the record's name there; "?" if not even that could be read.
        position: the record's place in its source, -1 for a whole shard.
        problem: what kind of problem, a few words that are the same for all of a kind.
        detail: one line.
    """

    source: str
    key: str
    position: int
    problem: str
    detail: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LintReport:
    """What was found.

    Args:
        num_records: how many records were read.
        findings: everything that is wrong, odd pictures included.
    """

    num_records: int
    findings: list[Finding]

    @property
    def is_clean(self) -> bool:
        """Whether every record can be learned from."""
        return all(finding.problem == ODD for finding in self.findings)

    def text(self) -> str:
        """Returns a few lines: how many of each problem, with one example."""
        counts = Counter(finding.problem for finding in self.findings)
        first = {finding.problem: finding for finding in reversed(self.findings)}
        lines = [f"{self.num_records} records, {len(self.findings)} findings"]
        for problem, count in counts.most_common():
            one = first[problem]
            lines.append(f"{count:8d}  {problem}: {one.source} {one.key}: {one.detail}")
        return "\n".join(lines)


def lint(
    paths: Sequence[str],
    *,
    tasks: Sequence[str] = (),
    min_px: int = 64,
    jobs: int = 1,
    out: Path | None = None,
) -> LintReport:
    """Reads every record and decodes every picture.

    Args:
        paths: tar patterns, JSON lists or folders.
        tasks: what is to be learned of each record; none asks for a picture or text of any kind.
        min_px: pictures with a shorter side are odd.
        jobs: processes.
        out: file that every finding is written to, one JSON object a line.

    Raises:
        UsageError: if a path holds no data or a task is unknown.
    """
    for task in tasks:
        get_task(task)
    findings: list[Finding] = []
    num_records = 0
    for path in paths:
        config = source_config(path, salvage=True)
        source: Any = config.build()
        name = source.name
        shards = zip(getattr(source, "paths", ()), getattr(source, "shards", ()), strict=True)
        findings += [
            Finding(source=name, key=shard, position=-1, problem="damaged shard", detail=one)
            for shard, index in shards
            for one in index.damage
        ]
        look = functools.partial(_look, tasks=tuple(tasks), min_px=min_px)
        hashes = []
        for found, keys in walk(config, look, jobs=jobs, what=f"checking {name}"):
            findings += found
            hashes.append(keys)
        num_records += len(source)
        findings += _duplicates(source, np.concatenate(hashes) if hashes else np.zeros(0))
    if out is not None:
        try:
            with out.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(dataclasses.asdict(one)) + "\n" for one in findings)
        except OSError as error:
            raise UsageError(f"cannot write {out}: {error.strerror}") from error
    return LintReport(num_records=num_records, findings=findings)


def _look(
    source: Source, positions: range, *, tasks: tuple[str, ...], min_px: int
) -> tuple[list[Finding], Any]:
    """Returns the findings of some records, and a hash of each key."""
    findings: list[Finding] = []
    hashes = np.zeros(len(positions), dtype=np.uint64)
    for row, position in enumerate(positions):

        def note(problem: str, detail: object, key: str = "?", position: int = position) -> None:
            line = " ".join(str(detail).split())
            findings.append(
                Finding(
                    source=source.name, key=key, position=position, problem=problem, detail=line
                )
            )

        try:
            key, files, fields = source.read(position)
        except (ValueError, OSError) as error:
            note("broken record", error)
            continue
        name = key.encode(errors="surrogatepass")  # file names and JSON may hold half characters
        hashes[row] = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")
        for role, data in files.items():
            try:
                open_image(data)
            except UsageError as error:
                note("broken picture", f"{role}: {error}", key)
                continue
            for oddity in _oddities(data, min_px):
                note(ODD, f"{role}: {oddity}", key)
        record = Record(
            key=key, index=0, epoch=0, position=position, source="", files=files, fields=fields
        )
        if not tasks and not any(fields.get(name) for name in _TEXTS):
            note("no text", f"none of {', '.join(_TEXTS)}", key)
        for task in tasks:
            try:
                get_task(task)(record, np.random.default_rng(0))
            except ValueError as error:
                note(f"unfit for {task}", error, key)
            for role in PICTURES[task]:
                if role not in files:
                    note(f"unfit for {task}", f"no picture {role!r}", key)
    return findings, hashes


def _oddities(data: bytes, min_px: int) -> list[str]:
    """Returns what is unusual about a picture that can be read."""
    found = []
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        if min(width, height) < min_px:
            found.append(f"small: {width} x {height}")
        if max(width, height) > _LONGEST_ASPECT * min(width, height):
            found.append(f"long: {width} x {height}")
        if image.mode in ("CMYK", "YCbCr", "LAB") or image.mode.startswith(("I", "F")):
            found.append(f"colors: {image.mode}")
        if image.has_transparency_data:
            found.append("transparent: it is put on white")
        if image.convert("L").resize((32, 32)).getextrema() in {(v, v) for v in range(256)}:
            found.append("one color")
        # Last, for it goes through the file and may end anywhere in it.
        num_frames = _num_frames(image)
        if num_frames is None:
            found.append("animated, and damaged: the first picture is taken")
        elif num_frames > 1:
            found.append(f"animated: the first of {num_frames} pictures is taken")
    return found


def _num_frames(image: Image.Image) -> int | None:
    """Returns how many pictures a file holds; None if it is damaged behind the first one."""
    try:
        return getattr(image, "n_frames", 1)
    except Exception:  # noqa: BLE001  (decoders raise all kinds of things for damaged files)
        return None


def _duplicates(source: Source, hashes: Any) -> list[Finding]:  # noqa: ANN401
    """Returns every record whose key was there before; 0 stands for a key that was not read."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    again = order[1:][(ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)]
    return [
        Finding(
            source=source.name,
            key=source.read(position)[0],
            position=position,
            problem="duplicate key",
            detail="another record before has the same key",
        )
        for position in sorted(again.tolist())
    ]
