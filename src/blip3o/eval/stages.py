"""The chain of an evaluation: plan, generate, score, report. Each stage resumes from its files.

    blip3o eval NAME --model M --out D         all stages
    blip3o eval score NAME FOLDER --out D      plan, score and report of images that are there

Nothing but the stages writes to D, and each file is a function of the files before it, so shards,
interruptions and their order do not change a byte.
"""

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from PIL import Image

from blip3o import __version__
from blip3o.core.config import to_dict
from blip3o.core.errors import UsageError
from blip3o.core.files import read_text, write_atomic
from blip3o.core.lock import locked
from blip3o.core.log import progress, say
from blip3o.core.shard import WHOLE, Shard
from blip3o.eval.benchmark import (
    Benchmark,
    Found,
    Item,
    Outcome,
    Row,
    Sample,
    Scorer,
    Scores,
    Verdict,
)
from blip3o.eval.generate import generate_samples, outputs_of, sources_of
from blip3o.eval.models import EvaluatedModel, Refused
from blip3o.eval.plan import ITEMS, SAMPLES, Plan, read_plan, write_plan
from blip3o.eval.report.doubts import doubts, settled
from blip3o.eval.report.evaluation import Evaluation, outcomes_of
from blip3o.eval.report.html import page
from blip3o.eval.report.intervals import bootstrap_intervals
from blip3o.eval.report.results import Results, title_of
from blip3o.eval.report.text import PAGE
from blip3o.eval.score import own_samples, score_samples
from blip3o.eval.verdicts import Key, VerdictFile, key_of
from blip3o.train.environment import source_commit

_FAULTS_OF_SAMPLES: set[Outcome] = {"missing", "broken"}


def evaluate(
    name: str, benchmark: Benchmark, model: EvaluatedModel, out: Path, shard: Shard = WHOLE
) -> Results | None:
    """Runs all stages, and returns the results; None if other shards are not done yet.

    Args:
        name: name of the benchmark in `BENCHMARKS`.
        benchmark: the benchmark with its settings.
        model: the model.
        out: folder of the evaluation; the same call again resumes.
        shard: the part of the work that this process does.

    Raises:
        UsageError: if the folder belongs to another evaluation, or as the stages.
    """
    with _working(out, shard):
        plan = Plan(tuple(benchmark.items()))
        write_plan(plan, out)
        identity = Identity.of(name, benchmark, model.identity, model.sampler, plan)
        identity.claim(out)
        # First, so that a missing key or file is found before hours of drawing. The judge then
        # takes memory beside the model; two calls, `eval` and `eval score`, hold one at a time.
        scorer = benchmark.scorer()
        generate_samples(plan, benchmark, model, out, shard)
        score_samples(plan, benchmark, scorer, own_samples(plan, out), out, shard)
        # A sample that the model refused to draw is a failure of the model.
        return finish(plan, benchmark, scorer, identity, out, shard, allowed={"missing"})


def score_folder(
    name: str,
    benchmark: Benchmark,
    folder: Path,
    out: Path,
    *,
    facts: Mapping[str, str] = MappingProxyType({}),
    allow_missing: bool = False,
    shard: Shard = WHOLE,
) -> Results | None:
    """Scores images that are there already, and returns the results.

    Args:
        name: name of the benchmark in `BENCHMARKS`.
        benchmark: the benchmark with its settings.
        folder: an evaluation of this package, or a folder or file in the benchmark's own layout.
        out: folder for plan, verdicts and results.
        facts: facts about the images, as the user states them: model, seed, settings of the
            sampler. Those of an evaluation come from its files.
        allow_missing: counts missing and broken samples as failures instead of refusing them.
        shard: the part of the samples that this process judges.

    Raises:
        UsageError: if the folder is not in a known layout, is incomplete, or as the stages.
    """
    if not folder.exists():
        raise UsageError(f"no such folder: {folder}")
    with _working(out, shard):
        plan = Plan(tuple(benchmark.items()))
        given = given_samples(folder, plan, benchmark)
        for note in given.notes:
            say(f"warning: {note}")
        missing = [key_of(job) for job in plan.jobs() if key_of(job) not in given.found]
        if missing and not allow_missing:
            first = ", ".join(f"{item} number {number}" for item, number in missing[:3])
            raise UsageError(
                f"{folder} lacks {len(missing)} of {len(plan.jobs())} samples, such as {first}: "
                "add them, or count them as failures with --allow-missing"
            )
        write_plan(plan, out)
        identity = Identity.of_folder(name, benchmark, folder, facts, plan)
        identity.claim(out)
        scorer = benchmark.scorer()
        score_samples(plan, benchmark, scorer, given.found, out, shard)
        allowed = _FAULTS_OF_SAMPLES if allow_missing else set[Outcome]()
        return finish(
            plan, benchmark, scorer, identity, out, shard, allowed=allowed, notes=given.notes
        )


class GivenSamples(NamedTuple):
    """Samples that are there already, with the remarks of their layout."""

    found: Mapping[Key, Found]
    notes: Sequence[str] = ()


def given_samples(folder: Path, plan: Plan, benchmark: Benchmark) -> GivenSamples:
    """Returns the samples in a folder of this package or in the benchmark's own layout.

    Raises:
        UsageError: if it has neither form, or holds samples of other items.
    """
    if (folder / ITEMS).exists() and (folder / SAMPLES).is_dir():
        if read_plan(folder).sha256 != plan.sha256:
            raise UsageError(
                f"{folder} holds samples of other prompts or settings: repeat the settings of that "
                "evaluation, seed included"
            )
        return GivenSamples(own_samples(plan, folder))
    layout = benchmark.layout()
    if layout is None:
        raise UsageError(
            f"{folder} is not an evaluation folder ({ITEMS} and {SAMPLES}/), and this benchmark "
            "has no other layout"
        )
    found = {(one.item, one.number): one for one in layout.read(folder, plan.items)}
    return GivenSamples(found, layout.notes(folder, plan.items))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """Everything that shapes an evaluation besides the judge.

    Args:
        benchmark: name of the benchmark.
        items_sha256: hash of the plan.
        model: facts that identify the model.
        sampler: facts about its sampling.
        seed: seed of the noise.
        settings: settings of the benchmark.
    """

    benchmark: str
    items_sha256: str
    model: Mapping[str, Any]
    sampler: Mapping[str, Any]
    seed: int | str
    settings: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        name: str,
        benchmark: Benchmark,
        model: Mapping[str, Any],
        sampler: Mapping[str, Any],
        plan: Plan,
    ) -> "Identity":
        """Returns the identity of an evaluation."""
        return cls(
            benchmark=name,
            items_sha256=plan.sha256,
            model=model,
            sampler=sampler,
            seed=benchmark.seed,
            settings=to_dict(benchmark),
        )

    @classmethod
    def of_folder(
        cls,
        name: str,
        benchmark: Benchmark,
        folder: Path,
        facts: Mapping[str, str],
        plan: Plan,
    ) -> "Identity":
        """Returns the identity of images that are there already.

        Args:
            name: name of the benchmark.
            benchmark: the benchmark.
            folder: folder of the images.
            facts: facts that the user states. A missing one is "not stated" in the results.
            plan: the plan.
        """
        if (folder / IDENTITY).exists():
            stored = json.loads(read_text(folder / IDENTITY, "the identity of an evaluation"))
            model, sampler, seed = (stored[key] for key in ("model", "sampler", "seed"))
        else:
            rest = dict(facts)
            model = {"name": rest.pop("model", NOT_STATED), "folder": folder.name}
            seed = rest.pop("seed", NOT_STATED)
            sampler = rest or {"settings": NOT_STATED}
        return cls(
            benchmark=name,
            items_sha256=plan.sha256,
            model=model,
            sampler=sampler,
            seed=seed,
            settings=to_dict(benchmark),
        )

    def claim(self, out: Path) -> None:
        """Notes this identity in a folder, or checks that the folder has the same one.

        Raises:
            UsageError: if the folder belongs to another evaluation; names the differences.
        """
        own = {name: getattr(self, name) for name in _CLAIMED}
        text = json.dumps(own, indent=2, ensure_ascii=False) + "\n"
        file = out / IDENTITY
        if not file.exists():
            write_atomic(file, text, is_shared=True)
            return
        stored = json.loads(read_text(file, "the identity of an evaluation"))
        different = [name for name, value in json.loads(text).items() if stored.get(name) != value]
        if different:
            raise UsageError(
                f"{out} holds another evaluation (another {' and '.join(different)}): use another "
                "--out"
            )


IDENTITY = "evaluation.json"
"""File that says whose samples a folder holds."""
NOT_STATED = "not stated"
_CLAIMED = ("benchmark", "items_sha256", "model", "sampler", "seed")


def finish(
    plan: Plan,
    benchmark: Benchmark,
    scorer: Scorer,
    identity: Identity,
    out: Path,
    shard: Shard = WHOLE,
    *,
    allowed: Collection[Outcome] = (),
    notes: Sequence[str] = (),
) -> Results | None:
    """Writes the results if every sample has a verdict; returns None if other shards work on.

    Args:
        plan: the plan.
        benchmark: the benchmark.
        scorer: gives the name of the judge.
        identity: everything else that shapes the results.
        out: folder of the evaluation.
        shard: the part of this process, for the message.
        allowed: faults of samples that count as failures instead of being refused.
        notes: remarks on the samples, for the results.

    Raises:
        UsageError: if a sample has a fault that is not allowed.
    """
    with locked(out / ".finish.lock"):  # shards that end at the same time take turns
        file = VerdictFile(out)
        verdicts = file.read()
        keys = [key_of(job) for job in plan.jobs()]
        left = sum(key not in verdicts for key in keys)
        if left:
            say(f"shard {shard.number}/{shard.count} is done; {left} samples have no verdict yet")
            return None
        refused = _FAULTS_OF_SAMPLES.difference(allowed)
        faulty = [verdicts[key] for key in keys if verdicts[key].outcome in refused]
        if faulty:
            raise UsageError(
                f"{len(faulty)} of {len(keys)} samples are missing or broken, such as "
                f"{faulty[0].item} number {faulty[0].number} ({faulty[0].data['reason']}): replace "
                "them, or count them as failures with --allow-missing"
            )
        file.rewrite(verdicts, keys)
        results = results_of(plan, benchmark, scorer.judge, identity, verdicts, out, notes)
        found = Evaluation(folder=out, results=results, items=plan.items, verdicts=verdicts)
        write_atomic(out / PAGE, page([found]))
        results.write(out)  # the last file: a folder with results is complete
        return results


def results_of(
    plan: Plan,
    benchmark: Benchmark,
    judge: str,
    identity: Identity,
    verdicts: Mapping[Key, Verdict],
    out: Path,
    notes: Sequence[str] = (),
) -> Results:
    """Returns the results: a pure function of the plan, the verdicts and the sizes of the images.

    Args:
        plan: the plan.
        benchmark: the benchmark.
        judge: name of the judge.
        identity: everything else that shapes the results.
        verdicts: the verdict of each sample.
        out: folder of the evaluation.
        notes: remarks on the samples.
    """
    rows = [Row(item, number, verdicts[item.id, number]) for item, number in plan.jobs()]
    scores = settled(benchmark.reduce, rows)
    return Results(
        benchmark=identity.benchmark,
        title=title_of(identity.benchmark, judge, benchmark.remarks()),
        judge=judge,
        overall=scores.overall,
        by_category=dict(scores.by_category),
        num_samples=len(rows),
        outcomes=outcomes_of(rows),
        items_sha256=identity.items_sha256,
        model=dict(identity.model),
        sampler=dict(identity.sampler),
        seed=identity.seed,
        version=__version__,
        commit=source_commit()[0] or f"the package {__version__}",
        worst_score=benchmark.worst_score,
        settings=dict(identity.settings),
        intervals=bootstrap_intervals(benchmark.resampled, rows, scores),
        figures=dict(scores.figures),
        notes=(*notes, *scores.notes, *doubts(out, rows)),
    )


def measure(benchmark: Benchmark, model: EvaluatedModel) -> Scores:
    """Returns the figures of a model without writing any file."""
    return settled(benchmark.reduce, judged(benchmark, benchmark.items(), model))


def judged(benchmark: Benchmark, items: Sequence[Item], model: EvaluatedModel) -> list[Row]:
    """Returns the rows of all samples of items, in order, without writing any file."""
    scorer = benchmark.scorer()
    rows: list[Row] = []
    for jobs in progress(Plan(tuple(items)).chunks(benchmark.batch_size), what="eval"):
        outputs = outputs_of(jobs, benchmark, model)
        samples = [
            Sample(
                item=job.item,
                number=job.number,
                sha256="",
                image=output if isinstance(output, Image.Image) else None,
                text=output if isinstance(output, str) else None,
                sources=sources_of(benchmark, job.item),
            )
            for job, output in zip(jobs, outputs, strict=True)
            if not isinstance(output, Refused)
        ]
        verdicts = {(one.item, one.number): one for one in scorer.verdicts(samples)}
        rows += [Row(job.item, job.number, verdicts.get(key_of(job))) for job in jobs]
    return rows


@contextmanager
def _working(out: Path, shard: Shard) -> Iterator[None]:
    """Creates a folder and holds the lock of a shard in it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error}") from error
    name = ".lock" if shard == WHOLE else f".lock-{shard.number}-of-{shard.count}"
    with locked(out / name, f"evaluates into {out}: wait for it, or use another --out"):
        yield
