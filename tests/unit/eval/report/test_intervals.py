"""Intervals by resampling items."""

import math
import random
import statistics
from collections.abc import Sequence

import pytest

from blip3o.eval.benchmark import Item, Row, Scores, Verdict
from blip3o.eval.report.intervals import Intervals, bootstrap_intervals


def row(item: int, number: int, score: float | None, category: str = "all") -> Row:
    one = Item(id=f"item{item}", number=item, category=category, num_samples=4)
    verdict = Verdict(item=one.id, number=number, sha256="", judge="j", score=score)
    return Row(one, number, verdict)


def reduce(rows: Sequence[Row]) -> Scores:
    """Returns the mean over items, which it tells apart by their ids; as strict as can be."""
    scores: dict[str, list[float]] = {}
    categories: dict[str, list[str]] = {}
    for one in rows:
        assert one.verdict is not None
        assert one.verdict.item == one.item.id
        scores.setdefault(one.item.id, []).append(one.verdict.score or 0.0)
        categories.setdefault(one.item.category, []).append(one.item.id)
    assert len({one.item.number for one in rows}) == len(scores)
    assert len({(one.item.id, one.number) for one in rows}) == len(rows), "an item counts twice"
    means = {item: statistics.fmean(values) for item, values in scores.items()}
    return Scores(
        overall=statistics.fmean(means.values()),
        by_category={
            name: statistics.fmean(means[item] for item in items)
            for name, items in categories.items()
        },
    )


def intervals_of(rows: Sequence[Row], num_resamples: int = 300, seed: int = 0) -> Intervals:
    return bootstrap_intervals(reduce, rows, reduce(rows), num_resamples=num_resamples, seed=seed)


def test_an_interval_has_the_width_of_the_standard_error_over_items() -> None:
    rng = random.Random(0)
    values = [rng.random() for _ in range(100)]
    # The samples of an item are equal, so they hold no more than one sample does.
    rows = [row(k, sample, value) for k, value in enumerate(values) for sample in range(2)]
    found = intervals_of(rows, num_resamples=1000).overall
    assert found is not None
    error = statistics.stdev(values) / math.sqrt(len(values))
    assert found[1] - found[0] == pytest.approx(2 * 1.96 * error, rel=0.08)
    assert found[0] < statistics.fmean(values) < found[1]


def test_independent_samples_of_an_item_narrow_the_interval() -> None:
    rng = random.Random(0)
    together = [row(k, s, float(k % 2)) for k in range(100) for s in range(4)]
    apart = [row(k, s, float(rng.random() < 0.5)) for k in range(100) for s in range(4)]
    (low, high), (low2, high2) = (
        intervals_of(rows).overall or (0, 0) for rows in (together, apart)
    )
    assert 1.6 < (high - low) / (high2 - low2) < 2.4


def test_the_same_seed_gives_the_same_interval_and_another_seed_another_one() -> None:
    rows = [row(k, 0, (k * 7 % 10) / 10) for k in range(40)]
    assert intervals_of(rows) == intervals_of(rows)
    assert intervals_of(rows) != intervals_of(rows, seed=1)


def test_categories_keep_their_numbers_of_items() -> None:
    rows = [row(k, 0, 0.0, "zeros") for k in range(5)] + [
        row(5 + k, 0, 1.0, "ones") for k in range(5)
    ]
    found = intervals_of(rows)
    assert found.overall == (0.5, 0.5)
    assert found.by_category == {"zeros": (0.0, 0.0), "ones": (1.0, 1.0)}


def test_a_category_of_one_item_has_no_interval_and_does_not_narrow_the_headline() -> None:
    rows = [row(k, 0, float(k % 2), f"category {k}") for k in range(30)]
    found = intervals_of(rows)
    assert found.overall is not None
    assert found.overall[1] - found.overall[0] > 0.2
    assert set(found.by_category.values()) == {None}


def test_one_item_has_no_interval() -> None:
    found = intervals_of([row(0, k, float(k)) for k in range(4)])
    assert found == Intervals(overall=None, by_category={"all": None})


def test_a_figure_of_a_whole_set_has_no_interval() -> None:
    def distance(rows: Sequence[Row]) -> Scores:
        raise AssertionError("a distance is costly and is not resampled")

    scores = Scores(overall=12.5, by_category={"all": 12.5})
    found = bootstrap_intervals(distance, [row(k, 0, None) for k in range(9)], scores)
    assert found == Intervals(overall=None, by_category={"all": None})


def test_a_figure_without_a_value_has_no_interval() -> None:
    rows = [row(k, 0, float(k % 2)) for k in range(9)]
    scores = Scores(overall=None, by_category={"all": 0.5, "other": None})
    found = bootstrap_intervals(reduce, rows, scores)
    assert found.overall is None
    assert found.by_category["all"] is not None
    assert found.by_category["other"] is None


def test_intervals_of_a_headline_that_resamples_lack_are_none() -> None:
    def sometimes(rows: Sequence[Row]) -> Scores:
        has_first = any(one.item.id == "item0" for one in rows)
        return Scores(overall=0.5 if has_first else None, by_category={})

    rows = [row(k, 0, 1.0) for k in range(20)]
    assert bootstrap_intervals(sometimes, rows, sometimes(rows)).overall is None
