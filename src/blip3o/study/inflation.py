"""The section of a report that says how much each leak inflates a score.

All values are changes of a score: the share of right images after a tuning minus the share before
it, or after the same tuning without a leak, with the same seed, prompts and noise.
"""

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from blip3o.core.files import atomic_file
from blip3o.eval.benchmark import Item, Row, Scores, Verdict
from blip3o.eval.report.intervals import Bounds, bootstrap_intervals
from blip3o.study.claims import Results
from blip3o.study.leaks import CLEAN, DIFFERENCES, PARTS, START, part_scores
from blip3o.study.results import Items, Result
from blip3o.study.statistics import mean_interval
from blip3o.study.tuning_sets import Leak

PLOT = "inflation.png"
NAMES = (*PARTS, *DIFFERENCES)
"""Scores whose changes the section shows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """The change of a score, over seeds and prompts.

    Args:
        by_seed: the change of each seed.
        seeds: 95 % t-interval over the seeds; None for one seed.
        prompts: 95 % interval of a bootstrap over the prompts, with the seeds as they are.
    """

    by_seed: Sequence[float]
    seeds: Bounds | None
    prompts: Bounds | None

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.by_seed)


def changes(own: Sequence[Result], reference: Mapping[int, Items]) -> dict[str, Change]:
    """Returns the changes of all scores that the runs have, against the reference of their seed.

    Args:
        own: runs of an arm.
        reference: scores of single prompts by seed; other seeds are left out.
    """
    pairs = {
        run.seed: _differences(run.items, reference[run.seed])
        for run in own
        if run.items and run.seed in reference
    }
    if not pairs:
        return {}
    by_seed = [part_scores(items) for items in pairs.values()]
    rows = _rows(pairs)
    means = _means(rows)
    bounds = bootstrap_intervals(_means, rows, means).by_category
    return {
        name: Change(
            by_seed=[scores[name] for scores in by_seed],
            seeds=_seed_bounds([scores[name] for scores in by_seed]),
            prompts=bounds[name],
        )
        for name in means.by_category
    }


def _differences(own: Items, reference: Items) -> Items:
    """Returns the change of each prompt; both runs have the same prompts."""
    return {
        name: tuple(a - b for a, b in zip(own[name], values, strict=True))
        for name, values in reference.items()
    }


def _rows(pairs: Mapping[int, Items]) -> list[Row]:
    """Returns a row for the change of each prompt; its category names its seed and part, too."""
    rows: list[Row] = []
    for seed, items in pairs.items():
        for group, values in items.items():
            for value in values:
                number = len(rows)
                item = Item(id=str(number), number=number, category=f"{seed}/{group}")
                verdict = Verdict(item=item.id, number=0, sha256="", judge="", score=value)
                rows.append(Row(item, 0, verdict))
    return rows


def _means(rows: Sequence[Row]) -> Scores:
    """Returns the mean over the seeds of every score."""
    by_seed: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        seed, _, group = row.item.category.partition("/")
        by_seed[seed][group].append(row.score_or(0.0))
    scores = [part_scores({n: tuple(v) for n, v in items.items()}) for items in by_seed.values()]
    names = [name for name in NAMES if all(name in one for one in scores)]
    means = {name: statistics.fmean(one[name] for one in scores) for name in names}
    return Scores(overall=None, by_category=means)


def _seed_bounds(values: Sequence[float]) -> Bounds | None:
    if len(values) < 2:
        return None
    found = mean_interval(values)
    return found.low, found.high


def start_items(runs: Sequence[Result]) -> dict[int, Items]:
    """Returns the scores of single prompts before the training, by seed."""
    return {
        run.seed: {
            name.removeprefix(START): values
            for name, values in run.items.items()
            if name.startswith(START)
        }
        for run in runs
    }


def end_items(runs: Sequence[Result]) -> dict[int, Items]:
    """Returns the scores of single prompts after the training, by seed."""
    return {
        run.seed: {n: values for n, values in run.items.items() if not n.startswith(START)}
        for run in runs
    }


def inflation_section(results: Results, out: Path, *, leaks: Mapping[str, Leak]) -> str:
    """Returns the section, and writes `inflation.png` if there is matplotlib and a result.

    Args:
        results: finished runs by the name of their arm.
        out: folder of the report.
        leaks: the leaks by the name of their arm, that of the clean arm too.
    """
    clean = results[CLEAN]
    before, without = start_items(clean), end_items(clean)
    gains = {name: changes(results[name], before) for name in leaks}
    effects = {name: changes(results[name], without) for name in leaks if name != CLEAN}
    lines = [
        "## Inflation\n",
        "Changes of the share of right images. In parentheses: the 95 % t-interval over the seeds;",
        "in brackets: the 95 % interval of a bootstrap over the prompts of these seeds.\n",
        "### Against the model before tuning\n",
        *_table(leaks, gains, PARTS),
        "\n### Against the same tuning without a leak\n",
        "`inflation` is the change of `leaked` minus that of `twin`: the effect of compositions",
        "that were trained on. `wording` is the change of `twin` minus that of `familiar`: the",
        "effect of the benchmark's wordings. The change of `familiar` is the honest one.\n",
        *_table(leaks, effects, NAMES),
        "\n### Found by `blip3o data decontaminate`\n",
        *_tool_table(leaks, results),
        "",
    ]
    if draw_inflation(leaks, effects, out / PLOT):
        lines += [f"![inflation by the share of leaked records]({PLOT})", ""]
    return "\n".join(lines)


def _table(
    leaks: Mapping[str, Leak], found: Mapping[str, Mapping[str, Change]], names: Sequence[str]
) -> list[str]:
    lines = [
        f"| arm | seeds | {' | '.join(names)} |",
        "|---|---|" + "---|" * len(names),
    ]
    for arm in leaks:
        if arm in found:
            own = found[arm]
            count = len(next(iter(own.values())).by_seed) if own else 0
            cells = [_cell(own[name]) if name in own else "-" for name in names]
            lines.append(f"| `{arm}` | {count} | {' | '.join(cells)} |")
    return lines


def _cell(change: Change) -> str:
    text = f"{change.mean:+.3f}"
    if change.seeds is not None:
        text += " ({:+.3f}, {:+.3f})".format(*change.seeds)
    if change.prompts is not None:
        text += " [{:+.3f}, {:+.3f}]".format(*change.prompts)
    return text


_TOOL = ("leak_share", "leak_found", "false_alarms")


def _tool_table(leaks: Mapping[str, Leak], results: Results) -> list[str]:
    lines = [
        "| arm | leaked share of the records | reported share of the leaked | of the others |",
        "|---|---|---|---|",
    ]
    for arm in leaks:
        cells = []
        for name in _TOOL:
            values = [run.scores[name] for run in results[arm] if name in run.scores]
            cells.append(f"{statistics.fmean(values):.2%}" if values else "-")
        lines.append(f"| `{arm}` | {' | '.join(cells)} |")
    return lines


_SHOWN = {
    "inflation": "leaked minus twin",
    "wording": "twin minus familiar",
    "familiar": "familiar",
}


def draw_inflation(
    leaks: Mapping[str, Leak], effects: Mapping[str, Mapping[str, Change]], file: Path
) -> bool:
    """Draws the changes by the share of leaked records; returns whether it could.

    The axis has equal steps between the rates, so that 0 has a place on it. Lines are the leaks of
    a shape, and squares those of the exact prompts. Bars are the intervals over the prompts.

    Args:
        leaks: the leaks by the name of their arm.
        effects: changes against the tuning without a leak.
        file: the PNG file to write.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    if not any(effects.values()):
        return False
    rates = sorted({leak.rate for leak in leaks.values()})
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.subplots()
    axes.axhline(0.0, color="0.6", linewidth=0.8)
    for number, (name, label) in enumerate(_SHOWN.items()):
        for kind, style in (("shape", "-o"), ("exact", "s")):
            points = [
                (rates.index(leak.rate) + 0.06 * (number - 1), effects[arm][name])
                for arm, leak in leaks.items()
                if leak.kind == kind and name in effects.get(arm, {})
            ]
            if not points:
                continue
            places, values = [x for x, _ in points], [change.mean for _, change in points]
            ends = [change.prompts or (change.mean, change.mean) for _, change in points]
            bars = [
                [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)],
                [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)],
            ]
            text = f"{label}, {kind}"
            axes.errorbar(
                places,
                values,
                bars,
                fmt=style,
                color=f"C{number}",
                label=text,
                markersize=5 if kind == "shape" else 7,
                capsize=3,
                linewidth=1.2,
            )
            for place, (_, change) in zip(places, points, strict=True):
                axes.plot(
                    [place] * len(change.by_seed),
                    change.by_seed,
                    ".",
                    color=f"C{number}",
                    markersize=3,
                    alpha=0.5,
                )
    axes.set_xticks(range(len(rates)), [f"{rate:.0%}" for rate in rates])
    axes.set_xlabel("leaked share of the tuning set", fontsize=9)
    axes.set_ylabel("change of the score", fontsize=9)
    axes.legend(fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axes.grid(alpha=0.3)
    figure.tight_layout()
    with atomic_file(file, is_shared=True) as scratch:
        figure.savefig(scratch, dpi=90, format="png", metadata={"Software": None})
    return True
