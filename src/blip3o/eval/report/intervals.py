"""95 % intervals by resampling items; all samples of an item stay together."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from blip3o.core.rng import numpy_rng
from blip3o.eval.benchmark import Item, Row, Scores

Bounds: TypeAlias = tuple[float, float]
"""Lower and upper bound of an interval, on the scale of its figure."""

_QUANTILES = (0.025, 0.975)
_LEAST_SHARE = 0.95
"""Least share of the resamples that must have a figure for the figure to have an interval."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervals:
    """95 % intervals of the figures of a benchmark; None where there is none.

    Args:
        overall: interval of the headline.
        by_category: intervals by category.
    """

    overall: Bounds | None = None
    by_category: Mapping[str, Bounds | None] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Returns the intervals as JSON data, `intervals` of `results.json`."""
        return {
            "overall": None if self.overall is None else list(self.overall),
            "by_category": {
                name: None if bounds is None else list(bounds)
                for name, bounds in self.by_category.items()
            },
        }


def bootstrap_intervals(
    reduce: Callable[[Sequence[Row]], Scores],
    rows: Sequence[Row],
    scores: Scores,
    *,
    num_resamples: int = 300,
    seed: int = 0,
) -> Intervals:
    """Returns percentile intervals of a clustered bootstrap; the same arguments give the same ones.

    Items are drawn with replacement within their category, because the categories of a benchmark
    are fixed. If a category has one item only, all items are drawn together: otherwise such
    categories would narrow the interval of the headline. An item that is drawn again gets another
    id and number, so a benchmark counts it as another item. The intervals are too narrow for a few
    items, and they do not hold the noise of another judge.

    Args:
        reduce: `Benchmark.resampled`.
        rows: all rows; rows of one item have equal ids.
        scores: the figures of these rows; a figure that is None has no interval.
        num_resamples: number of resamples.
        seed: seed of the resamples.

    Returns:
        An interval for each figure of `scores`. It is None for fewer than two items, if no sample
        has a score of its own (items that are drawn twice bias a distance between sets of images),
        and if more than 5 % of the resamples lack the figure, as for a category of one item.
    """
    clusters: dict[str, list[Row]] = {}
    for row in rows:
        clusters.setdefault(row.item.id, []).append(row)
    groups = list(clusters.values())
    sizes = Counter(group[0].item.category for group in groups)
    names = [name for name, value in scores.by_category.items() if value is not None]
    found: dict[str, list[float]] = {name: [] for name in names}
    overalls: list[float] = []
    has_scores = any(row.verdict is not None and row.verdict.score is not None for row in rows)
    if len(groups) >= 2 and has_scores:
        draw = _Draw(groups, is_stratified=min(sizes.values()) > 1)
        for number in range(num_resamples):
            resampled = reduce(draw(numpy_rng(seed, "eval intervals", number)))
            if resampled.overall is not None:
                overalls.append(resampled.overall)
            for name in names:
                value = resampled.by_category.get(name)
                if value is not None:
                    found[name].append(value)
    least = max(1, _LEAST_SHARE * num_resamples)
    return Intervals(
        overall=None if scores.overall is None else _bounds(overalls, least),
        by_category={name: _bounds(found.get(name, []), least) for name in scores.by_category},
    )


class _Draw:
    """Draws the rows of a resample.

    Args:
        groups: the rows of each item.
        is_stratified: whether each category keeps its number of items.
    """

    def __init__(self, groups: Sequence[Sequence[Row]], *, is_stratified: bool) -> None:
        self._groups = groups
        self._span = 1 + max(group[0].item.number for group in groups)
        self._copies: dict[tuple[int, int], Sequence[Row]] = {}
        strata: dict[str, list[int]] = {}
        for place, group in enumerate(groups):
            strata.setdefault(group[0].item.category if is_stratified else "", []).append(place)
        self._strata = [np.array(places) for places in strata.values()]

    def __call__(self, rng: np.random.Generator) -> list[Row]:
        drawn: list[Row] = []
        for places in self._strata:
            counts = Counter(places[rng.integers(0, len(places), len(places))].tolist())
            # In the order of the items: the figures of some official programs depend on the order.
            for place in sorted(counts):
                for copy in range(counts[place]):
                    drawn.extend(self._copy(place, copy))
        return drawn

    def _copy(self, place: int, copy: int) -> Sequence[Row]:
        """Returns the rows of an item under another id; copy 0 keeps its own."""
        group = self._groups[place]
        if copy == 0:
            return group
        if (place, copy) not in self._copies:
            first = group[0].item
            item: Item = dataclasses.replace(
                first, id=f"{first.id}#copy{copy}", number=first.number + copy * self._span
            )
            self._copies[place, copy] = [
                Row(
                    item,
                    row.number,
                    row.verdict and dataclasses.replace(row.verdict, item=item.id),
                )
                for row in group
            ]
        return self._copies[place, copy]


def _bounds(values: Sequence[float], least: float) -> Bounds | None:
    if len(values) < least:
        return None
    low, high = np.quantile(np.array(values, dtype=np.float64), _QUANTILES).tolist()
    return low, high
