"""Claims, and the rule that decides whether the results hold or refute them.

A claim names tests that must all pass for it to hold, and tests that must all pass for it to be
refuted. A test passes only if the whole interval of its value over the seeds lies where it says,
so a value that may be on either side decides nothing. With fewer than `LEAST_SEEDS` finished runs
of an arm, no test of this arm passes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from blip3o.study.results import Result
from blip3o.study.statistics import Interval, difference_interval, mean_interval, value_range

LEAST_SEEDS = 3

Results = Mapping[str, Sequence[Result]]
"""Finished runs by the name of their arm."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Test:
    """A statement about the value of an arm, or about the difference of two arms.

    Args:
        score: name of the score.
        arm: name of the arm.
        minus: name of an arm whose value is subtracted; empty for none.
        is_: where the interval must lie: "above" or "below" the limit, "within" the limit on both
            sides of 0, or "beyond" it on one side.
        limit: the limit.
        flops_share: take the arm's value not at the end but where its training has cost this
            multiple of the operations of the other arm (`minus`); interpolated between the points
            of the curve, and the end of a shorter curve.
        over: what stands for the values of the seeds: their 95 % interval; for exact statements,
            their range; or the interval of the differences within each seed ("pairs"), for arms
            whose runs share everything else that depends on the seed.
    """

    score: str
    arm: str
    minus: str = ""
    is_: Literal["above", "below", "within", "beyond"]
    limit: float = 0.0
    flops_share: float | None = None
    over: Literal["interval", "range", "pairs"] = "interval"

    def __post_init__(self) -> None:
        if self.over == "pairs" and (not self.minus or self.flops_share is not None):
            raise ValueError("pairs need an arm to subtract, and the scores of the end")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim.

    Args:
        name: short name ("C1").
        text: the claim in a sentence.
        held_if: the claim holds if all these tests pass.
        refuted_if: it is refuted if all these tests pass; a claim without them cannot be refuted.
    """

    name: str
    text: str
    held_if: tuple[Test, ...]
    refuted_if: tuple[Test, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a test; the interval is None if finished runs are missing."""

    test: Test
    interval: Interval | None
    passed: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """The verdict on a claim and the outcomes behind it."""

    verdict: Literal["held", "refuted", "open"]
    held_if: tuple[Outcome, ...]
    refuted_if: tuple[Outcome, ...]


def decide(claim: Claim, results: Results) -> Decision:
    """Returns the verdict on a claim; it is open if neither list of tests passes.

    Args:
        claim: the claim.
        results: the finished runs of each arm, without those that diverged.
    """
    held = tuple(_outcome(test, results) for test in claim.held_if)
    refuted = tuple(_outcome(test, results) for test in claim.refuted_if)
    holds, fails = (bool(some) and all(one.passed for one in some) for some in (held, refuted))
    verdict = "open" if holds == fails else "held" if holds else "refuted"
    return Decision(verdict=verdict, held_if=held, refuted_if=refuted)


def _outcome(test: Test, results: Results) -> Outcome:
    interval = _measured(test, results)
    passed = interval is not None and _lies(test, interval)
    return Outcome(test=test, interval=interval, passed=passed)


def _lies(test: Test, found: Interval) -> bool:
    match test.is_:
        case "above":
            return found.low > test.limit
        case "below":
            return found.high < test.limit
        case "within":
            return -test.limit <= found.low and found.high <= test.limit
        case "beyond":
            return found.low > test.limit or found.high < -test.limit


def _measured(test: Test, results: Results) -> Interval | None:
    other = results.get(test.minus, ())
    own = _values(test, results.get(test.arm, ()), _flops(other))
    if test.minus == "":
        if own is None:
            return None
        return mean_interval(own) if test.over == "interval" else value_range(own)
    subtracted = _values(dataclasses.replace(test, flops_share=None), other, None)
    if own is None or subtracted is None:
        return None
    if test.over == "interval":
        return difference_interval(own, subtracted)
    if test.over == "pairs":
        return _pairs(test, results)
    a, b = value_range(own), value_range(subtracted)
    return Interval(a.mean - b.mean, a.low - b.high, a.high - b.low)


def _pairs(test: Test, results: Results) -> Interval | None:
    """Returns the interval of the differences of the seeds that both arms have."""
    own, other = ({run.seed: run for run in results[arm]} for arm in (test.arm, test.minus))
    both = sorted(own.keys() & other.keys())
    if len(both) < LEAST_SEEDS:
        return None
    return mean_interval([own[k].scores[test.score] - other[k].scores[test.score] for k in both])


def _values(test: Test, runs: Sequence[Result], flops: float | None) -> list[float] | None:
    """Returns the value of every seed; None if there are too few seeds or a value is missing."""
    if test.flops_share is None:
        found = [run.scores.get(test.score) for run in runs]
    elif flops is None:
        return None
    else:
        found = [_at(run, test.score, test.flops_share * flops) for run in runs]
    values = [one for one in found if one is not None]
    return values if len(values) == len(runs) >= LEAST_SEEDS else None


def _flops(runs: Sequence[Result]) -> float | None:
    """Returns the mean operations of the whole training."""
    totals = [run.points[-1].flops for run in runs if run.points]
    return sum(totals) / len(totals) if totals else None


def _at(run: Result, score: str, flops: float) -> float | None:
    """Returns a score at a cost of training; None before the first point of the curve."""
    points = [one for one in run.points if score in one.scores]
    if not points or flops < points[0].flops:
        return None
    costs = [one.flops for one in points]
    return float(np.interp(flops, costs, [one.scores[score] for one in points]))
