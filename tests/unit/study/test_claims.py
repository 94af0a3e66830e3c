"""Verdicts on synthetic results, with the edge cases of intervals."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from blip3o.study import claims
from blip3o.study.claims import Claim, decide
from blip3o.study.results import Point, Result

NEEDED = 3


def runs(arm: str, values: Sequence[float], score: str = "scenes") -> list[Result]:
    return [
        Result(
            arm=arm,
            seed=seed,
            status="done",
            trainable_parameters=1,
            flops_per_sample=1.0,
            scores={score: value},
        )
        for seed, value in enumerate(values)
    ]


def versus(is_: Any = "above", **changes: Any) -> claims.Test:
    return dataclasses.replace(
        claims.Test(score="scenes", arm="a", minus="b", is_="above"), is_=is_, **changes
    )


BETTER = Claim(name="C1", text="a is better.", held_if=(versus(),), refuted_if=(versus("below"),))


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ([0.80, 0.81, 0.82], [0.50, 0.51, 0.52], "held"),
        ([0.50, 0.51, 0.52], [0.80, 0.81, 0.82], "refuted"),
        ([0.50, 0.60, 0.70], [0.49, 0.60, 0.68], "open"),  # the interval contains 0
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], "open"),  # equal without any spread
        ([0.6, 0.6, 0.6], [0.5, 0.5, 0.5], "held"),
        ([0.80, 0.81], [0.50, 0.51, 0.52], "open"),  # too few seeds
        ([0.80, 0.81, 0.82], [], "open"),
    ],
)
def test_a_difference_of_two_arms(a: list[float], b: list[float], verdict: str) -> None:
    assert decide(BETTER, {"a": runs("a", a), "b": runs("b", b)}).verdict == verdict


def test_the_interval_is_welchs() -> None:
    """Means 0.8 and 0.6, standard deviations 0.1: 2.776 x 0.1 x sqrt(2 / 3) is 0.2267."""
    a, b = [0.7, 0.8, 0.9], [0.5, 0.6, 0.7]
    decision = decide(BETTER, {"a": runs("a", a), "b": runs("b", b)})
    (outcome,) = decision.held_if
    assert outcome.interval is not None
    assert outcome.interval.mean == pytest.approx(0.2)
    assert outcome.interval.low == pytest.approx(0.2 - 0.2267, abs=1e-4)
    assert not outcome.passed
    assert decision.verdict == "open"


@pytest.mark.parametrize("missing", ["a", "b"])
def test_a_missing_arm_decides_nothing(missing: str) -> None:
    results = {name: runs(name, [0.1, 0.1, 0.1]) for name in ("a", "b") if name != missing}
    decision = decide(BETTER, results)
    assert decision.verdict == "open"
    assert decision.held_if[0].interval is None


def test_a_missing_score_decides_nothing() -> None:
    results = {"a": runs("a", [1, 1, 1]), "b": runs("b", [0, 0, 0])}
    results["a"][1] = dataclasses.replace(results["a"][1], scores={})
    assert decide(BETTER, results).verdict == "open"


@pytest.mark.parametrize(
    ("is_", "limit", "values", "passes"),
    [
        ("above", 0.5, [0.60, 0.61, 0.62], True),
        ("above", 0.5, [0.50, 0.61, 0.72], False),
        ("below", 0.5, [0.40, 0.41, 0.42], True),
        ("below", 0.5, [0.60, 0.61, 0.62], False),
        ("within", 0.05, [0.01, 0.0, -0.01], True),
        ("within", 0.0, [0.0, 0.0, 0.0], True),
        ("within", 0.01, [0.01, 0.0, -0.01], False),
        ("within", 0.05, [0.10, 0.11, 0.12], False),
        ("beyond", 0.05, [-0.10, -0.11, -0.12], True),
        ("beyond", 0.05, [0.10, 0.11, 0.12], True),
        ("beyond", 0.05, [0.10, 0.0, -0.10], False),
    ],
)
def test_a_value_of_one_arm(is_: str, limit: float, values: list[float], passes: bool) -> None:
    test = dataclasses.replace(versus(is_, limit=limit), minus="")
    claim = Claim(name="C", text="x", held_if=(test,))
    verdict = decide(claim, {"a": runs("a", values)}).verdict
    assert verdict == ("held" if passes else "open")


def test_exact_statements_use_the_range_of_the_seeds() -> None:
    """The t-interval of 2, 5, 9 contains 0, although no seed is near it."""
    test = claims.Test(score="scenes", arm="a", is_="above")
    results = {"a": runs("a", [2, 5, 9])}
    assert decide(Claim(name="C", text="x", held_if=(test,)), results).verdict == "open"
    exact = dataclasses.replace(test, over="range")
    assert decide(Claim(name="C", text="x", held_if=(exact,)), results).verdict == "held"
    both = dataclasses.replace(exact, minus="b")
    held = Claim(name="C", text="x", held_if=(both,))
    assert decide(held, {**results, "b": runs("b", [1, 1, 1.9])}).verdict == "held"
    assert decide(held, {**results, "b": runs("b", [1, 1, 2.1])}).verdict == "open"


def test_pairs_compare_the_runs_of_a_seed() -> None:
    """The seeds differ by more than the arms: only their differences decide."""
    results = {"a": runs("a", [0.21, 0.52, 0.90]), "b": runs("b", [0.20, 0.50, 0.87])}
    claim = Claim(name="C", text="x", held_if=(versus(),))
    assert decide(claim, results).verdict == "open"
    paired = dataclasses.replace(claim, held_if=(versus(over="pairs"),))
    (outcome,) = decide(paired, results).held_if
    assert outcome.interval is not None
    assert outcome.interval.mean == pytest.approx(0.02)
    assert outcome.interval.low == pytest.approx(0.02 - 4.303 * 0.01 / 3**0.5, abs=1e-5)
    reordered = {"a": results["a"], "b": results["b"][::-1]}
    assert decide(paired, reordered).held_if == (outcome,)
    others = [dataclasses.replace(run, seed=run.seed + 1) for run in results["b"]]
    assert decide(paired, {"a": results["a"], "b": others}).held_if[0].interval is None


def test_pairs_need_another_arm_and_the_end() -> None:
    with pytest.raises(ValueError, match="pairs need an arm"):
        versus(over="pairs", minus="")
    with pytest.raises(ValueError, match="pairs need an arm"):
        versus(over="pairs", flops_share=0.5)


def test_all_tests_of_a_list_must_pass() -> None:
    claim = Claim(
        name="C4",
        text="b has better pixels.",
        held_if=(versus("above", score="frechet"), versus("below", score="psnr")),
        refuted_if=(versus("below", score="frechet"), versus("above", score="psnr")),
    )

    def verdict(frechet: float, psnr: float) -> str:
        first, second = runs("a", [frechet] * 3, "frechet"), runs("b", [5.0] * 3, "frechet")
        for group, value in ((first, psnr), (second, 20.0)):
            group[:] = [
                dataclasses.replace(one, scores={**one.scores, "psnr": value}) for one in group
            ]
        return decide(claim, {"a": first, "b": second}).verdict

    assert verdict(9.0, 10.0) == "held"
    assert verdict(1.0, 30.0) == "refuted"
    assert verdict(1.0, 10.0) == "open"


def test_lists_that_both_pass_leave_a_claim_open() -> None:
    test = dataclasses.replace(versus(), minus="")
    claim = Claim(name="C", text="x", held_if=(test,), refuted_if=(test,))
    assert decide(claim, {"a": runs("a", [1, 1, 1])}).verdict == "open"


def with_curve(arm: str, flops: Sequence[float], values: Sequence[float]) -> list[Result]:
    points = tuple(
        Point(step=1, samples=1, seconds=1, cpu_seconds=1, flops=cost, scores={"scenes": value})
        for cost, value in zip(flops, values, strict=True)
    )
    return [dataclasses.replace(one, points=points) for one in runs(arm, [values[-1]] * NEEDED)]


@pytest.mark.parametrize(("share", "value"), [(0.25, 0.2), (0.5, 0.4), (0.375, 0.3), (1.0, 0.5)])
def test_a_value_at_a_share_of_the_operations_of_another_arm(share: float, value: float) -> None:
    """The curve of `a` ends at 60, and that of `b` at 100."""
    results = {
        "a": with_curve("a", [25, 50, 60], [0.2, 0.4, 0.5]),
        "b": with_curve("b", [50, 100], [0.1, 0.3]),
    }
    test = versus(flops_share=share)
    (outcome,) = decide(Claim(name="C8", text="x", held_if=(test,)), results).held_if
    assert outcome.interval is not None
    assert outcome.interval.mean == pytest.approx(value - 0.3)


def test_before_the_first_point_of_a_curve_nothing_is_known() -> None:
    results = {"a": with_curve("a", [25, 50], [0.2, 0.4]), "b": with_curve("b", [100], [0.3])}
    test = versus(flops_share=0.1)
    (outcome,) = decide(Claim(name="C8", text="x", held_if=(test,)), results).held_if
    assert outcome.interval is None
