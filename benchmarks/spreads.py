"""Statistics of measurements."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Spread = dict[str, float]
Row = dict[str, Any]
"""One row of results: the measurements of a variant of a case; docs/results.md has its fields."""


def spread(values: Sequence[float]) -> Spread:
    """Returns median, quartiles (low, high) and extremes of measurements."""
    several = [*values, *values] if len(values) == 1 else values
    low, median, high = statistics.quantiles(several, n=4, method="inclusive")
    numbers = {"median": median, "low": low, "high": high, "min": min(values), "max": max(values)}
    return {name: float(f"{number:.6g}") for name, number in numbers.items()}


def exponent(work: Sequence[float], cost: Sequence[float]) -> tuple[float, float]:
    """Returns the exponent e of cost ~ work ** e, fitted in log-log, and its standard error.

    Raises:
        ValueError: if there are fewer than three points.
    """
    if len(work) < 3:
        raise ValueError(f"an exponent with its error needs three points, got {len(work)}")
    x, y = [math.log(one) for one in work], [math.log(one) for one in cost]
    slope, start = statistics.linear_regression(x, y)
    rest = sum((b - start - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    width = sum((a - statistics.fmean(x)) ** 2 for a in x)
    return slope, math.sqrt(rest / (len(x) - 2) / width)
