"""Intervals against values from textbooks."""

import math

import numpy as np
import pytest

from blip3o.study.statistics import difference_interval, mean_interval, value_range


def test_a_t_interval_of_three_values() -> None:
    """The standard deviation of 1, 2, 3 is 1, and t is 4.303."""
    found = mean_interval([1.0, 2.0, 3.0])
    half = 4.303 / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half))


def test_equal_values_have_an_interval_without_width() -> None:
    assert str(mean_interval([0.5, 0.5])) == "0.5 [0.5, 0.5]"
    found = difference_interval([0.5] * 3, [0.25] * 3)
    assert (found.low, found.high) == (0.25, 0.25)


def test_unequal_variances_have_fewer_degrees_of_freedom() -> None:
    """One arm without spread: the degrees of freedom are those of the other arm."""
    found = difference_interval([1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0])
    assert found.high - found.mean == pytest.approx(4.303 / math.sqrt(3))


def test_many_values_use_the_last_quantile() -> None:
    values = [0.0, 1.0] * 20
    half = 2.228 * math.sqrt(10 / 39 / 40)
    assert mean_interval(values).high == pytest.approx(0.5 + half)


def test_a_range_is_that_of_the_values() -> None:
    found = value_range([3.0, 1.0, 2.0])
    assert (found.mean, found.low, found.high) == (2, 1, 3)


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_intervals_cover_the_true_mean_as_often_as_they_say(count: int) -> None:
    rng = np.random.default_rng(count)
    found = [mean_interval(rng.normal(1.0, 2.0, count).tolist()) for _ in range(2000)]
    covered = sum(one.low <= 1.0 <= one.high for one in found) / len(found)
    assert 0.935 <= covered <= 0.975


def test_intervals_of_differences_cover_too() -> None:
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(1, 2, 3).tolist(), rng.normal(0, 1, 3).tolist()) for _ in range(2000)]
    found = [difference_interval(*pair) for pair in pairs]
    covered = sum(one.low <= 1.0 <= one.high for one in found) / len(found)
    assert 0.935 <= covered <= 0.985
