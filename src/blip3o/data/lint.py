"""Finds the problems of a data set before a run does: `blip3o data lint`."""

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
from blip3o.data.sources import Source, SourceConfig, read_record
from blip3o.data.sources.webdataset import WebDatasetSource
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
    """The checks of every record.

    Args:
        tasks: tasks that each record must fit; if empty, the tasks that the record is probably
            meant for.
        min_px: images with a shorter side are reported as odd.
        preparer: tokenizes the texts as a run does and limits their length; None counts no tokens.
        conversation: field that holds the conversations; None for the task's own field.
        max_turns: largest number of questions that a run draws from a conversation; None keeps
            all.
    """

    tasks: tuple[str, ...] = ()
    min_px: int = 64
    preparer: Preparer | None = None
    conversation: str | None = None
    max_turns: int | None = None


def lint(
    paths: Sequence[str],
    checks: LintChecks,
    *,
    jobs: int = 1,
    out: Path | None = None,
    image_folder: str | None = None,
) -> LintReport:
    """Reads every record, decodes every image and returns all problems.

    Args:
        paths: tar patterns, JSON lists or folders.
        checks: the checks of every record.
        jobs: number of processes.
        out: file for all findings, one JSON object per line; None writes no file.
        image_folder: folder that the image paths of JSON lists start from.

    Raises:
        UsageError: if a path holds no data, a task is unknown, or `out` cannot be written.
    """
    for task in checks.tasks:
        get_task(task)
    findings: list[Finding] = []
    passed_over: dict[str, Counter[str]] = {}
    num_records = longest_text = 0
    for path in paths:
        config = source_config(path, salvage=True, image_folder=image_folder)
        source = config.build()
        found, longest = _check_source(config, source, checks, jobs)
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
        uncounted_text=0 if checks.preparer is not None else longest_text,
        file=out,
    )


def _check_source(
    config: SourceConfig, source: Source, checks: LintChecks, jobs: int
) -> tuple[list[Finding], int]:
    """Returns all findings of a source, and the length of its longest text."""
    findings: list[Finding] = []
    if isinstance(source, WebDatasetSource):
        findings += [
            Finding(source=source.name, key=path, position=-1, problem="damaged shard", detail=one)
            for path, index in zip(source.paths, source.shards, strict=True)
            for one in index.damage
        ]
    if not len(source):
        empty = "it holds no records; a run refuses it"
        findings.append(
            Finding(source=source.name, key=config.path, position=-1, problem="empty", detail=empty)
        )
    hashes = [np.zeros(0, dtype=np.uint64)]
    longest_text = 0
    check = functools.partial(_check_chunk, checks=checks)
    for found, keys, longest in walk(config, check, jobs=jobs, what=f"checking {source.name}"):
        findings += found
        hashes.append(keys)
        longest_text = max(longest_text, longest)
    # Lines of a list are identified by their position, and published lists do repeat ids.
    problem = REPEATED if config.kind == "jsonl" else "duplicate key"
    return findings + _duplicates(source, problem, np.concatenate(hashes)), longest_text


def _check_chunk(
    source: Source, positions: range, *, checks: LintChecks
) -> tuple[list[Finding], NDArray[np.uint64], int]:
    """Returns the findings of some records, a hash of each key, and the longest text length."""
    findings: list[Finding] = []
    longest = 0
    hashes = np.zeros(len(positions), dtype=np.uint64)
    for row, position in enumerate(positions):
        key = "?"
        found: list[tuple[str, object]] = []
        try:
            record = read_record(source, position)
            key = record.key
            hashes[row] = _hash(key)
            longest = max(longest, _text_length(record.fields))
            found += _check(record, checks)
        except (ValueError, OSError) as error:
            found.append(("broken record", error))
        except UsageError:
            raise  # an unreachable store is not a problem of the record
        except Exception as error:  # noqa: BLE001  (one record must not hide problems of the others)
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
    """Returns the length in characters of the longest caption or whole conversation."""
    turns = turns_of(fields) or fields.get("text_conversations")
    turn_texts = [
        str(turn.get("value") or turn.get("content") or "")
        for turn in (turns if isinstance(turns, list) else ())
        if isinstance(turn, dict)
    ]
    texts = captions_of(fields) or ()
    return max(sum(map(len, turn_texts)), *(len(one) for one in texts if isinstance(one, str)), 0)


def _hash(key: str) -> int:
    name = key.encode(errors="surrogatepass")  # names may hold halves of surrogate pairs
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


def _check(record: Record, checks: LintChecks) -> Iterator[tuple[str, object]]:
    """Yields problem and detail of each problem of one record."""
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
    """Yields the reasons why a run would refuse a record or one of its captions.

    Broken images are reported elsewhere.
    """
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
    """Returns the example that a run would make from a record; ValueError if it cannot."""
    rng = np.random.default_rng(0)
    example = make_example(
        record, task, rng, conversation=checks.conversation, max_turns=checks.max_turns
    )
    if get_task(task).needs_regions:  # every name counts here; a run knows only its own labels
        things = [str(one.get("thing")) for one in example.regions]
        object_rows(example.regions, things, [str(one.get("color")) for one in example.regions])
    return example


def _oddities(header: UndecodedImage, image: Image.Image, min_px: int) -> list[str]:
    """Returns short descriptions of unusual properties of a readable image, given in RGB."""
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
        found.append("transparent: it gets a white background")
    return found


def _odd_frames(header: UndecodedImage, data: bytes) -> list[str]:
    """Returns a note about a file with several frames; a run reads only the first one."""
    if header.format == "JPEG":  # phones append a preview or a gain map to the photo
        return []
    try:
        file = Image.open(io.BytesIO(data))
    except Exception:  # noqa: BLE001  (the image itself was readable, so this is not a problem)
        return []
    with file:
        try:  # counting frames reads the whole file and may fail anywhere
            num_frames = getattr(file, "n_frames", 1)
        except Exception:  # noqa: BLE001  (decoders raise all kinds of errors for damaged files)
            return ["animated, and damaged: the first image is used"]
    return [f"animated: the first of {num_frames} images is used"] * (num_frames > 1)


def _duplicates(source: Source, problem: str, hashes: NDArray[Any]) -> list[Finding]:
    """Returns every record that repeats the key of an earlier one.

    A hash of 0 stands for a key that could not be read.
    """
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    again = order[1:][(ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)]
    return [
        Finding(
            source=source.name,
            key=source.read(position)[0],
            position=position,
            problem=problem,
            detail="an earlier record has the same key",
        )
        for position in sorted(again.tolist())
    ]
