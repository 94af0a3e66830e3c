"""Finds what is wrong with a data set before a run does: `blip3o data lint`."""

import dataclasses
import functools
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.core.types import Example, Record
from blip3o.data.captions import captions_of
from blip3o.data.collate import Preparer, image_roles, object_rows
from blip3o.data.conversations import turns_of
from blip3o.data.findings import ODD, REPEATED, Finding, LintReport
from blip3o.data.sources import Source
from blip3o.data.tasks import get_task, likely_tasks, make_example, variants
from blip3o.data.walk import source_config, walk
from blip3o.imaging.load import UndecodedImage, read_header

__all__ = ["ODD", "Finding", "LintChecks", "LintReport", "lint"]

_TEXTS = ("a caption", "a conversation", "an instruction")
_LONGEST_ASPECT = 4.0
_DEEP = re.compile(r"[IF]|\d+ x ")
"""Color modes of more than 8 bits."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LintChecks:
    """What every record is checked for.

    Args:
        tasks: what is to be learned of each record; none takes those that the record seems to be
            meant for.
        min_px: images with a shorter side are odd.
        preparer: makes tokens of the texts, as a run would, and knows how many are too many; None
            counts no tokens.
        conversation: the field of the conversations, where it is not that of the task.
        max_turns: the most questions that a run draws from a conversation; None takes all.
    """

    tasks: tuple[str, ...] = ()
    min_px: int = 64
    preparer: Preparer | None = None
    conversation: str | None = None
    max_turns: int | None = None


def lint(
    paths: Sequence[str],
    *,
    tasks: Sequence[str] = (),
    min_px: int = 64,
    jobs: int = 1,
    out: Path | None = None,
    preparer: Preparer | None = None,
    conversation: str | None = None,
    max_turns: int | None = None,
    image_folder: str | None = None,
) -> LintReport:
    """Reads every record and decodes every image.

    Args:
        paths: tar patterns, JSON lists or folders.
        tasks: see `LintChecks`.
        min_px: see `LintChecks`.
        jobs: processes.
        out: file that every finding is written to, one JSON object a line.
        preparer: see `LintChecks`.
        conversation: see `LintChecks`.
        max_turns: see `LintChecks`.
        image_folder: where the image paths of JSON lists start.

    Raises:
        UsageError: if a path holds no data, a task is unknown, or `out` cannot be written.
    """
    for task in tasks:
        get_task(task)
    checks = LintChecks(
        tasks=tuple(tasks),
        min_px=min_px,
        preparer=preparer,
        conversation=conversation,
        max_turns=max_turns,
    )
    findings: list[Finding] = []
    passed_over: dict[str, Counter[str]] = {}
    num_records = longest_text = 0
    for path in paths:
        config = source_config(path, salvage=True, image_folder=image_folder)
        source: Any = config.build()
        found, longest = _look_through(config, source, checks, jobs)
        findings += found
        longest_text = max(longest_text, longest)
        num_records += len(source)
        passed_over.setdefault(source.name, Counter()).update(source.passed_over)
    if out is not None:
        try:
            with out.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(dataclasses.asdict(one)) + "\n" for one in findings)
        except OSError as error:
            raise UsageError(f"cannot write {out}: {error.strerror}") from error
    return LintReport(
        num_records=num_records,
        findings=findings,
        passed_over=passed_over,
        uncounted_text=0 if preparer is not None else longest_text,
        file=out,
    )


def _look_through(
    config: Any,  # noqa: ANN401  (a source's config)
    source: Any,  # noqa: ANN401  (shards tell more than the protocol)
    checks: LintChecks,
    jobs: int,
) -> tuple[list[Finding], int]:
    """Returns all findings of a source, and the length of its longest text."""
    shards = zip(getattr(source, "paths", ()), getattr(source, "shards", ()), strict=True)
    findings = [
        Finding(source=source.name, key=shard, position=-1, problem="damaged shard", detail=one)
        for shard, index in shards
        for one in index.damage
    ]
    if not len(source):
        empty = "it holds no record at all; a run refuses it"
        findings.append(
            Finding(source=source.name, key=config.path, position=-1, problem="empty", detail=empty)
        )
    hashes = [np.zeros(0, dtype=np.uint64)]
    longest_text = 0
    look = functools.partial(_look, checks=checks)
    for found, keys, longest in walk(config, look, jobs=jobs, what=f"checking {source.name}"):
        findings += found
        hashes.append(keys)
        longest_text = max(longest_text, longest)
    # The lines of a list have places, and published lists repeat their ids.
    problem = REPEATED if config.kind == "jsonl" else "duplicate key"
    return findings + _duplicates(source, problem, np.concatenate(hashes)), longest_text


def _look(
    source: Source, positions: range, *, checks: LintChecks
) -> tuple[list[Finding], NDArray[np.uint64], int]:
    """Returns the findings of some records, a hash of each key, and the longest text's length."""
    findings: list[Finding] = []
    longest = 0
    hashes = np.zeros(len(positions), dtype=np.uint64)
    for row, position in enumerate(positions):
        key = "?"
        found: list[tuple[str, object]] = []
        try:
            key, files, fields = source.read(position)
            hashes[row] = _hash(key)
            longest = max(longest, _text_length(fields))
            record = Record(
                key=key, index=0, epoch=0, position=position, source="", files=files, fields=fields
            )
            found += _check(record, checks)
        except (ValueError, OSError) as error:
            found.append(("broken record", error))
        except UsageError:
            raise  # a store that cannot be reached says nothing about a record
        except Exception as error:  # noqa: BLE001  (one record must not hide what is wrong with others)
            found.append(("unexpected error", f"{type(error).__name__}: {error}"))
        for problem, detail in found:
            line = " ".join(str(detail).split())
            findings.append(
                Finding(
                    source=source.name, key=key, position=position, problem=problem, detail=line
                )
            )
    return findings, hashes, longest


def _text_length(fields: Mapping[str, Any]) -> int:
    """Returns the characters of a record's longest text: a caption or a whole conversation."""
    turns = turns_of(fields) or fields.get("text_conversations")
    said = [
        str(turn.get("value") or turn.get("content") or "")
        for turn in (turns if isinstance(turns, list) else ())
        if isinstance(turn, dict)
    ]
    texts = captions_of(fields) or ()
    return max(sum(map(len, said)), *(len(one) for one in texts if isinstance(one, str)), 0)


def _hash(key: str) -> int:
    name = key.encode(errors="surrogatepass")  # file names and JSON may hold half characters
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


def _check(record: Record, checks: LintChecks) -> Iterator[tuple[str, object]]:
    """Yields the problems of one record, each with a line about it."""
    broken = []
    for role, data in record.files.items():
        try:
            header = read_header(data)
            image = header.decode()
        except UsageError as error:
            broken.append(role)
            yield "broken image", f"{role}: {error}"
            continue
        for oddity in (*_oddities(header, image, checks.min_px), *_odd_frames(header, data)):
            yield ODD, f"{role}: {oddity}"
    tasks = checks.tasks or likely_tasks(record)
    if not tasks:
        yield "no text", f"none of {', '.join(_TEXTS)}"
    for task in tasks:
        for reason in _reasons(record, task, checks, broken):
            yield f"unfit for {task}", reason


def _reasons(record: Record, task: str, checks: LintChecks, broken: Sequence[str]) -> Iterator[str]:
    """Yields why a run would refuse a record, for each of its captions; broken images apart."""
    several = list(variants(record, task))
    refused: dict[str, list[int]] = {}
    for number, one in enumerate(several, 1):
        try:
            example = _example(one, task, checks)
            roles = image_roles(example)
            missing = [role for role in sorted(roles) if role not in record.files]
            if missing:
                raise ValueError(f"no image {missing[0]!r}")
            if checks.preparer is not None and not roles & {*broken}:
                checks.preparer.check(example)
        except ValueError as error:
            refused.setdefault(str(error), []).append(number)
    for reason, numbers in refused.items():
        which = ", ".join(map(str, numbers))
        is_all = len(numbers) == len(several)
        yield reason if is_all else f"caption {which} of {len(several)}: {reason}"


def _example(record: Record, task: str, checks: LintChecks) -> Example:
    """Returns what a task makes of a record, as a run would; ValueError if it is unfit."""
    rng = np.random.default_rng(0)
    example = make_example(
        record, task, rng, conversation=checks.conversation, max_turns=checks.max_turns
    )
    if get_task(task).needs_regions:  # as if every name were a label of the run
        things = [str(one.get("thing")) for one in example.regions]
        object_rows(example.regions, things, [str(one.get("color")) for one in example.regions])
    return example


def _oddities(header: UndecodedImage, image: Image.Image, min_px: int) -> list[str]:
    """Returns what is unusual about an image that can be read.

    Args:
        header: what its file says of it.
        image: what reading it returns, in RGB.
        min_px: shorter sides are odd.
    """
    found = []
    width, height = image.size
    if min(width, height) < min_px:
        found.append(f"small: {width} x {height}")
    if max(width, height) > _LONGEST_ASPECT * min(width, height):
        found.append(f"long: {width} x {height}")
    if not np.ptp(np.asarray(image.resize((32, 32))), axis=(0, 1)).any():
        found.append("one color")
    if header.mode in ("CMYK", "YCbCr", "LAB", "HSV") or _DEEP.match(header.mode):
        found.append(f"colors: {header.mode}")
    if header.has_transparency:
        found.append("transparent: it is put on white")
    return found


def _odd_frames(header: UndecodedImage, data: bytes) -> list[str]:
    """Returns a note about a file of several frames, of which the first one is read."""
    if header.format == "JPEG":  # phones put a preview or a map of the light behind the photo
        return []
    try:
        file = Image.open(io.BytesIO(data))
    except Exception:  # noqa: BLE001  (reading does without the notes at which this stumbles)
        return []
    with file:
        try:  # it goes through the file and may end anywhere in it
            num_frames = getattr(file, "n_frames", 1)
        except Exception:  # noqa: BLE001  (decoders raise all kinds of things for damaged files)
            return ["animated, and damaged: the first image is taken"]
    return [f"animated: the first of {num_frames} images is taken"] * (num_frames > 1)


def _duplicates(source: Source, problem: str, hashes: NDArray[Any]) -> list[Finding]:
    """Returns every record whose key was there before; 0 stands for a key that was not read."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    again = order[1:][(ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)]
    return [
        Finding(
            source=source.name,
            key=source.read(position)[0],
            position=position,
            problem=problem,
            detail="another record before has the same key",
        )
        for position in sorted(again.tolist())
    ]
