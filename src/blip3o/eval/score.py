"""The stage that judges samples: each verdict is on the disk before the next one is asked for."""

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from blip3o.core.errors import UsageError, reason_of
from blip3o.core.log import progress
from blip3o.core.shard import WHOLE, Shard
from blip3o.eval.benchmark import Benchmark, Found, Outcome, Sample, Scorer, Verdict
from blip3o.eval.generate import find, sources_of
from blip3o.eval.plan import SAMPLES, Job, Plan
from blip3o.eval.verdicts import Key, VerdictFile, key_of
from blip3o.imaging.load import ImageLimits, open_image

NOT_FINAL = {"transport", "missing", "broken"}
"""Outcomes that the next call tries again: the server or the sample may be there then."""


_LIMITS = ImageLimits(max_bytes=2**30, max_pixels=2**28)
"""Grids of four large images are larger than the files that users send."""


class Loaded(NamedTuple):
    """A sample to judge, or the verdict that it cannot be judged; neither if it has a verdict."""

    sample: Sample | None
    fault: Verdict | None


def own_samples(plan: Plan, out: Path) -> dict[Key, Found]:
    """Returns the files in the folder of samples of an evaluation."""
    return {
        key_of(job): Found(item=job.item.id, number=job.number, file=file)
        for job in plan.jobs()
        if (file := find(out / SAMPLES, job)) is not None
    }


def score_samples(
    plan: Plan,
    benchmark: Benchmark,
    scorer: Scorer,
    found: Mapping[Key, Found],
    out: Path,
    shard: Shard = WHOLE,
) -> None:
    """Judges the samples of a shard that have no final verdict yet.

    Args:
        plan: the plan.
        benchmark: gives the input images.
        scorer: gives the verdicts.
        found: the files of the samples.
        out: folder of the evaluation.
        shard: the part of the samples that this process judges.

    Raises:
        UsageError: if the folder holds verdicts of another judge.
    """
    file = VerdictFile(out)
    known = file.read()
    for one in known.values():
        if one.judge != scorer.judge:
            raise UsageError(
                f"{file.path} holds verdicts of {one.judge}, not of {scorer.judge}: use another "
                "--out; another judge makes another benchmark"
            )
    # The same division as in the first stage: a process judges the samples that it has generated.
    groups = plan.chunks(benchmark.batch_size)[shard.number - 1 :: shard.count]
    own = list(itertools.chain(*groups))
    for start in progress(range(0, len(own), scorer.batch_size), what="score"):
        jobs = own[start : start + scorer.batch_size]
        samples: list[Sample] = []
        for job in jobs:
            key = key_of(job)
            loaded = load(job, benchmark, scorer.judge, found.get(key), known.get(key))
            if loaded.fault is not None:
                fault = _placed(loaded.fault, found.get(key), out)
                if known.get(key) != fault:
                    file.append(fault)
            elif loaded.sample is not None:
                samples.append(loaded.sample)
        for verdict in scorer.verdicts(samples) if samples else ():
            file.append(_placed(verdict, found[verdict.item, verdict.number], out))


def _placed(verdict: Verdict, found: Found | None, out: Path) -> Verdict:
    """Returns a verdict that names the file of its sample, if that is elsewhere."""
    if found is None or found.file.is_relative_to(out / SAMPLES):
        return verdict
    file = os.path.relpath(found.file, out)
    return dataclasses.replace(verdict, file=file, tile=found.tile)


def load(
    job: Job,
    benchmark: Benchmark,
    judge: str,
    found: Found | None,
    earlier: Verdict | None = None,
) -> Loaded:
    """Returns a sample from its file; an image that has a final verdict is not decoded.

    Args:
        job: the sample that is asked for.
        benchmark: gives the input images.
        judge: name of the judge, for the verdict on a sample that is missing.
        found: the file; None if there is none.
        earlier: the verdict on this sample so far; None if there is none.
    """
    if found is None:
        return Loaded(None, _fault(job, judge, "missing", "", "no file"))
    try:
        data = found.file.read_bytes()
    except OSError as error:
        reason = f"{found.file.name}: {reason_of(error)}"
        return Loaded(None, _fault(job, judge, "missing", "", reason))
    digest = hashlib.sha256(data)
    if found.tile is not None:
        digest.update(repr(found.tile).encode())
    sha256 = digest.hexdigest()
    if earlier is not None and earlier.sha256 == sha256 and earlier.outcome not in NOT_FINAL:
        return Loaded(None, None)
    if found.file.suffix == ".refused":
        reason = data.decode(errors="replace")
        return Loaded(None, _fault(job, judge, "missing", sha256, reason))
    text: str | None = None
    image: Image.Image | None = None
    try:
        if job.item.task == "question":
            text = data.decode()
        else:
            image = _cut(open_image(data, _LIMITS), found)
    except (UsageError, ValueError, OSError) as error:
        return Loaded(None, _fault(job, judge, "broken", sha256, f"{found.file.name}: {error}"))
    sample = Sample(
        item=job.item,
        number=job.number,
        sha256=sha256,
        image=image,
        text=text,
        sources=sources_of(benchmark, job.item),
    )
    return Loaded(sample, None)


def _cut(image: Image.Image, found: Found) -> Image.Image:
    """Returns the tile of a grid, or the whole image."""
    if found.tile is None:
        return image
    column, row, columns, rows = found.tile
    side = found.tile_px
    if side is None:
        width, height = image.width // columns, image.height // rows
    else:
        width = height = side
    if (image.width, image.height) != (columns * width, rows * height):
        raise UsageError(
            f"the grid has {image.width} x {image.height} pixels, and {columns} x {rows} tiles of "
            f"{width} x {height} need {columns * width} x {rows * height}"
        )
    left, upper = column * width, row * height
    return image.crop((left, upper, left + width, upper + height))


def _fault(job: Job, judge: str, outcome: Outcome, sha256: str, reason: str) -> Verdict:
    return Verdict(
        item=job.item.id,
        number=job.number,
        sha256=sha256,
        judge=judge,
        outcome=outcome,
        data={"reason": reason},
    )
