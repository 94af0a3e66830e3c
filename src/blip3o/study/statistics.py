"""Means with intervals over seeds.

The interval of a mean is Student's: mean +- t s / sqrt(n), at 95 %. The interval of a difference of
two means is Welch's, which does not assume equal variances.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence

_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % quantiles of Student's t distribution with 1, 2, ... degrees of freedom. The last one
stands for all larger numbers, which makes those intervals a little too wide."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over seeds and the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Returns the mean and the bounds with four significant digits."""
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


def mean_interval(values: Sequence[float]) -> Interval:
    """Returns the mean of at least two values and its t-interval."""
    return _interval(statistics.fmean(values), _error(values), len(values) - 1)


def difference_interval(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Returns mean(first) - mean(second) and its Welch interval; at least two values each."""
    mean = statistics.fmean(first) - statistics.fmean(second)
    errors = _error(first), _error(second)
    total = math.hypot(*errors)
    if total == 0:
        return Interval(mean, mean, mean)
    shares = zip(errors, (len(first), len(second)), strict=True)
    freedom = 1 / sum((error / total) ** 4 / (count - 1) for error, count in shares)
    return _interval(mean, total, math.floor(freedom + 1e-9))


def value_range(values: Sequence[float]) -> Interval:
    """Returns the mean, and the smallest and the largest value instead of an interval."""
    return Interval(statistics.fmean(values), min(values), max(values))


def _error(values: Sequence[float]) -> float:
    """Returns the standard error of a mean."""
    return statistics.stdev(values) / math.sqrt(len(values))


def _interval(mean: float, error: float, freedom: int) -> Interval:
    half = _T[min(freedom, len(_T)) - 1] * error
    return Interval(mean, mean - half, mean + half)
