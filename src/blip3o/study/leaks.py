"""A benchmark of which one half leaks into training, and the scores of both halves.

A seed divides the held-out compositions of the scenes into two halves. A prompt is **leaked** if
all of its held-out compositions are in the first half, and a **twin** if all are in the second
half. The other prompts are left out. Leaked prompts and twins have the same distribution, and only
leaked ones may enter training (`blip3o.study.tuning_sets`). **Familiar** prompts have the
compositions of twins in wordings that training uses.
"""

import dataclasses
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Literal, TypeAlias

from blip3o.core.bounds import Count
from blip3o.core.rng import numpy_rng
from blip3o.curate.decontaminate import decontaminate
from blip3o.data.scenes.frames import Wording
from blip3o.data.scenes.heldout import Composition, heldout_compositions
from blip3o.data.scenes.prompts import WORDING_CATEGORIES, EvalPrompt, eval_prompts
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.eval.benchmark import Item
from blip3o.eval.models import PipelineModel
from blip3o.eval.scenes import ScenesBenchmark
from blip3o.eval.stages import judged
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.study.grid import Evaluation
from blip3o.study.results import Items, Measured, Scores
from blip3o.train.config import RunConfig

Part: TypeAlias = Literal["leaked", "twin", "familiar"]
PARTS: tuple[Part, ...] = ("leaked", "twin", "familiar")
CLEAN = "clean"
"""Arm without a leak, with which the others are compared."""
START = "start_"
"""Begins the names of the scores before training."""
PROMPTS = "benchmark.txt"
"""File with the prompts of the benchmark, beside the tuning sets."""
LEAK_FIELD = "is_leaked"
"""Field of a record that says whether it belongs to the leak."""


def leaked_compositions(seed: int) -> frozenset[Composition]:
    """Returns half of the held-out compositions of each kind, drawn by a seed."""
    tables: dict[str, list[Composition]] = defaultdict(list)
    for one in heldout_compositions():
        tables[one[0]].append(one)
    return frozenset(
        table[int(place)]
        for kind, table in tables.items()
        for place in numpy_rng(seed, f"contamination/{kind}").permutation(len(table))[::2]
    )


def side_of(prompt: EvalPrompt, leaked: frozenset[Composition]) -> Part | None:
    """Returns the half of a prompt; None if its compositions belong to both halves."""
    own = frozenset(prompt.heldout)
    if own <= leaked:
        return "leaked"
    return None if own & leaked else "twin"


def benchmark_prompts(benchmark: ScenesBenchmark, wording: Wording = "heldout") -> list[EvalPrompt]:
    """Returns the prompts of all categories, in order; they do not depend on the halves."""
    count = benchmark.wording_prompts_per_category
    return [
        prompt
        for category in WORDING_CATEGORIES
        for prompt in eval_prompts(
            category, count, benchmark.seed, benchmark.world, wording=wording
        )
    ]


def benchmark_parts(benchmark: ScenesBenchmark, seed: int) -> dict[Part, list[Item]]:
    """Returns the items of each part. The noise of a prompt does not depend on the seed."""
    leaked = leaked_compositions(seed)
    parts: dict[Part, list[Item]] = {part: [] for part in PARTS}
    own = benchmark_prompts(benchmark)
    for number, prompt in enumerate([*own, *benchmark_prompts(benchmark, "train")]):
        part = side_of(prompt, leaked)
        if number >= len(own):
            part = "familiar" if part == "twin" else None
        if part is not None:
            parts[part].append(benchmark.prompt_item(prompt, number, part, part))
    return parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeakEvaluation(Evaluation):
    """Scores of leaked prompts, of their twins and of familiar prompts.

    `benchmark.wording_prompts_per_category` is the number of prompts of each category before they
    are divided, and `benchmark.images_per_prompt` that of their images.
    """

    kind: str = "contamination"
    num_points: Count = 1
    benchmark: ScenesBenchmark = dataclasses.field(
        default_factory=lambda: ScenesBenchmark(
            wording_prompts_per_category=32, images_per_prompt=1, num_inference_steps=12
        )
    )

    def start(self, pipe: Blip3oPipeline, arm: str, config: RunConfig) -> "_Measuring":
        """Measures the model before the training of the clean arm; see `Evaluation`.

        The other arms of the seed start from the same model.
        """
        measuring = _Measuring(self.benchmark, config)
        if arm == CLEAN:
            measuring.start = measuring.point(pipe, is_last=False)
        return measuring


class _Measuring:
    """Measures a run of a tuning set.

    Args:
        benchmark: the benchmark before it is divided.
        config: the run, whose only source is a list that `tuning_sets` has written.
    """

    def __init__(self, benchmark: ScenesBenchmark, config: RunConfig) -> None:
        self._benchmark = benchmark
        self._config = config
        self.start = Measured({})

    def point(self, pipe: Blip3oPipeline, *, is_last: bool) -> Measured:
        del is_last
        parts = benchmark_parts(self._benchmark, self._config.train.seed)
        items = [item for part in PARTS for item in parts[part]]
        rows = judged(self._benchmark, items, PipelineModel(pipe, "", self._benchmark))
        shares: dict[str, list[float]] = defaultdict(list)
        for row in rows:
            shares[row.item.id].append(row.score_or(self._benchmark.worst_score))
        groups: dict[str, list[float]] = defaultdict(list)
        for item in items:
            name = f"{item.data['part']}/{item.category}"
            groups[name].append(statistics.fmean(shares[item.id]))
        measured = {name: tuple(values) for name, values in groups.items()}
        return Measured(part_scores(measured), measured)

    def end(self, pipe: Blip3oPipeline, last: Measured) -> Measured:
        del pipe
        start = self.start
        scores = last.scores | {START + name: score for name, score in start.scores.items()}
        items = last.items | {START + name: values for name, values in start.items.items()}
        return Measured(scores | tool_scores(self._config.data.mixture[0].source), items)


def part_scores(items: Items) -> Scores:
    """Returns the scores of the parts, each the mean over its categories, and their differences.

    `inflation` is `leaked` minus `twin`, and `wording` is `twin` minus `familiar`. Each contains
    the difference between the prompts before the training, so only changes of it have a meaning.
    """
    categories: dict[str, list[float]] = defaultdict(list)
    for name, values in items.items():
        categories[name.partition("/")[0]].append(statistics.fmean(values))
    scores = {part: statistics.fmean(values) for part, values in categories.items()}
    for name, (one, other) in DIFFERENCES.items():
        if {one, other} <= scores.keys():
            scores[name] = scores[one] - scores[other]
    return scores


DIFFERENCES: dict[str, tuple[Part, Part]] = {
    "inflation": ("leaked", "twin"),
    "wording": ("twin", "familiar"),
}
"""Pairs of parts whose difference a leak changes."""


def tool_scores(source: JsonlConfig) -> Scores:
    """Returns what `blip3o data decontaminate` finds in a tuning set.

    `leak_share` is the share of the leaked records, `leak_found` the share of them that the tool
    reports against all prompts of the benchmark, and `false_alarms` its reports among the other
    records. A share of nothing is left out.
    """
    report = decontaminate([source.path], [f"benchmark={Path(source.path).with_name(PROMPTS)}"])
    found = {one.position for one in report.found}
    records = source.build()
    marks = [bool(records.read(place)[2][LEAK_FIELD]) for place in range(len(records))]
    leaked = [place in found for place, mark in enumerate(marks) if mark]
    others = [place in found for place, mark in enumerate(marks) if not mark]
    scores = {"leak_share": len(leaked) / len(marks)}
    for name, hits in (("leak_found", leaked), ("false_alarms", others)):
        if hits:
            scores[name] = sum(hits) / len(hits)
    return scores
