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
