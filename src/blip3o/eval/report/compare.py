"""Paired comparison of two evaluations by item: sign test, and the mean difference."""

import dataclasses
import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from blip3o.core.errors import UsageError
from blip3o.core.rng import numpy_rng
from blip3o.eval.benchmark import Item
from blip3o.eval.report.evaluation import Evaluation
from blip3o.eval.report.intervals import Bounds

_STATED = ("seed", "sampler", "items_sha256", "num_samples", "version", "commit")
"""Keys of `results.json` whose differences a comparison states."""
_QUANTILES = (0.025, 0.975)
_FALL = 0.01
"""A category that falls by more is named, on the scale of the scores of samples."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The second evaluation against the first, by item.

    Args:
        first: label of the first evaluation.
        second: label of the second one.
        num_items: number of compared items.
        better: number of items on which the second has the higher mean score.
        worse: number of items on which it has the lower one.
        equal: number of items on which both are equal.
        p_value: two-sided exact sign test of `better` against `worse`, in 0..1.
        difference: mean over the items of (second - first), on the scale of the scores of samples.
        interval: 95 % interval of `difference`, by resampling items; None for fewer than two.
        fallen: mean difference of the items of each category that fell by more than 0.01.
        left_out: number of items that are not compared, by reason.
        remarks: differences between the evaluations that may explain the difference.
    """

    first: str
    second: str
    num_items: int
    better: int
    worse: int
    equal: int
    p_value: float
    difference: float | None
    interval: Bounds | None
    fallen: Mapping[str, float]
    left_out: Mapping[str, int]
    remarks: Sequence[str]


def check_titles(evaluations: Sequence[Evaluation]) -> None:
    """Checks that all evaluations measure the same.

    Raises:
        UsageError: if their titles differ: another judge or other prompts make another benchmark.
    """
    titles = list(dict.fromkeys(one.results.title for one in evaluations))
    if len(titles) > 1:
        raise UsageError(
            f"these results cannot be compared: {' and '.join(map(repr, titles))} are different "
            "benchmarks; report each alone, or use --side-by-side to show them without a comparison"
        )


def labels_of(evaluations: Sequence[Evaluation]) -> list[str]:
    """Returns a short different name for each evaluation.

    It is the folder, in full where needed; a single evaluation has the name of its model, so its
    report does not depend on the place of the folder.

    Raises:
        UsageError: if one folder is named twice.
    """
    paths = [one.folder.resolve() for one in evaluations]
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise UsageError(f"{twice[0]} is named twice; name each folder once")
    if len(evaluations) == 1:
        return [str(evaluations[0].results.model.get("name", paths[0].name))]
    counts = Counter(path.name for path in paths)
    return [path.name if counts[path.name] == 1 else str(path) for path in paths]


def compare_all(
    evaluations: Sequence[Evaluation], *, num_resamples: int = 2000, seed: int = 0
) -> list[Comparison]:
    """Returns the comparison of each pair, in order.

    Args:
        evaluations: at least two evaluations for a comparison.
        num_resamples: number of resamples of the items.
        seed: seed of the resamples.

    Raises:
        UsageError: if their titles differ, or one folder is named twice.
    """
    check_titles(evaluations)
    named = zip(labels_of(evaluations), evaluations, strict=True)
    return [
        _compare(*first, *second, num_resamples=num_resamples, seed=seed)
        for first, second in itertools.combinations(named, 2)
    ]


def item_scores(evaluation: Evaluation) -> dict[str, float | None]:
    """Returns the mean score of each item by id; None if a sample has no score.

    A missing or broken sample has the worst score of the benchmark.
    """
    scores: dict[str, list[float | None]] = defaultdict(list)
    for row in evaluation.rows():
        if row.is_failure:
            scores[row.item.id].append(evaluation.results.worst_score)
        else:
            scores[row.item.id].append(None if row.judgement is None else row.judgement.score)
    means: dict[str, float | None] = {}
    for item, values in scores.items():
        known = [value for value in values if value is not None]
        means[item] = statistics.fmean(known) if len(known) == len(values) else None
    return means


def sign_test(better: int, worse: int) -> float:
    """Returns the exact two-sided p-value of a fair coin; ties take no part.

    Args:
        better: number of wins.
        worse: number of losses.
    """
    count, fewer = better + worse, min(better, worse)
    ways, total = 1, 1  # ways to choose 0 of `count`, and of all numbers so far
    for number in range(fewer):
        ways = ways * (count - number) // (number + 1)
        total += ways
    # `Fraction` divides whole numbers that are too large for floats.
    return float(min(Fraction(1), Fraction(2 * total, 2**count)))


def _compare(
    first_label: str,
    first: Evaluation,
    second_label: str,
    second: Evaluation,
    *,
    num_resamples: int,
    seed: int,
) -> Comparison:
    before, after = item_scores(first), item_scores(second)
    first_items = {item.id: item for item in first.items}
    second_items = {item.id: item for item in second.items}
    left_out: Counter[str] = Counter()
    differences: list[float] = []
    by_category: dict[str, list[float]] = defaultdict(list)
    for item in dict.fromkeys([*first_items, *second_items]):
        if item not in second_items:
            left_out[f"only in {first_label}"] += 1
        elif item not in first_items:
            left_out[f"only in {second_label}"] += 1
        elif _asked(first_items[item]) != _asked(second_items[item]):
            left_out["same name, but another prompt"] += 1
        else:
            old, new = before[item], after[item]
            if old is None or new is None:
                left_out["a sample without a score"] += 1
            else:
                differences.append(new - old)
                by_category[_category(first_items[item])].append(new - old)
    means = {name: statistics.fmean(values) for name, values in by_category.items()}
    better = sum(value > 0 for value in differences)
    worse = sum(value < 0 for value in differences)
    return Comparison(
        first=first_label,
        second=second_label,
        num_items=len(differences),
        better=better,
        worse=worse,
        equal=len(differences) - better - worse,
        p_value=sign_test(better, worse),
        difference=statistics.fmean(differences) if differences else None,
        interval=_interval(differences, num_resamples, seed),
        fallen={name: mean for name, mean in means.items() if mean < -_FALL},
        left_out=dict(left_out),
        remarks=_differences(first, second, first_label, second_label),
    )


def _category(item: Item) -> str:
    """Returns the category of an item with its task, as the same words may name two skills."""
    if item.task == "text_to_image":
        return item.category
    return f"{item.task}: {item.category}" if item.category else item.task


def _asked(item: Item) -> tuple[object, ...]:
    return item.task, item.prompt, item.sources, item.category, item.data


def _interval(values: Sequence[float], num_resamples: int, seed: int) -> Bounds | None:
    if len(values) < 2:
        return None
    rng = numpy_rng(seed, "eval comparison")
    array = np.array(values, dtype=np.float64)
    means = [
        float(array[rng.integers(0, len(array), len(array))].mean()) for _ in range(num_resamples)
    ]
    low, high = np.quantile(means, _QUANTILES).tolist()
    return low, high


def _differences(
    first: Evaluation, second: Evaluation, first_label: str, second_label: str
) -> list[str]:
    """Returns remarks on the differences between two evaluations of the same title."""
    remarks: list[str] = []
    for key in _STATED:
        old, new = getattr(first.results, key), getattr(second.results, key)
        if old != new:
            remarks.append(f"{key} differs: {_short(new, old)} against {_short(old, new)}.")
    old_name, new_name = (one.results.model.get("name") for one in (first, second))
    if first.results.model != second.results.model and old_name == new_name is not None:
        old, new = first.results.model, second.results.model
        remarks.append(
            f"the models have one name but differ: {_short(new, old)} against {_short(old, new)}."
        )
    if first.results.model == second.results.model:
        remarks.append("both evaluate the same model.")
    for label, one in ((first_label, first), (second_label, second)):
        lost = sum(row.is_failure for row in one.rows())
        if lost:
            remarks.append(
                f"{lost:,} samples of {label} are missing or broken: they score "
                f"{one.results.worst_score:g}."
            )
    return remarks


def _short(value: object, other: object) -> str:
    """Returns a value in few words; of a mapping, the entries that differ from another one."""
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        keys = [key for key in {**value, **other} if value.get(key) != other.get(key)]
        return ", ".join(f"{key}={value.get(key)}" for key in keys)
    text = str(value)
    return text if len(text) <= 20 else f"{text[:16]}..."
