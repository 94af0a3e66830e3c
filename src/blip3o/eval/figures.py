"""Means and groups, from which benchmarks make their figures."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def mean(values: Sequence[float]) -> float | None:
    """Returns the mean, or None of nothing."""
    return sum(values) / len(values) if values else None


def grouped(pairs: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    """Returns the values of each name, names in the order of their first appearance."""
    groups: dict[str, list[T]] = defaultdict(list)
    for name, value in pairs:
        groups[name].append(value)
    return dict(groups)


def percent(values: Sequence[float]) -> float | None:
    """Returns the mean of shares in percent; None without values."""
    share = mean(values)
    return None if share is None else 100 * share


def percents(marks: Iterable[tuple[str, float]]) -> dict[str, float | None]:
    """Returns the mean in percent of the values under each name, by name."""
    return {name: percent(values) for name, values in sorted(grouped(marks).items())}
