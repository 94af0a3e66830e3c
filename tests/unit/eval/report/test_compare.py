"""Paired comparisons by item."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Item
from blip3o.eval.report.compare import Comparison, compare_all, labels_of, sign_test
from blip3o.eval.report.evaluation import Evaluation
from blip3o.eval.report.tables import comparison_notes


def compared(*folders: Path) -> list[Comparison]:
    return compare_all([Evaluation.read(folder) for folder in folders])


def constant(value: float) -> Callable[[Item, int], float]:
    return lambda item, number: value


def test_the_sign_test_is_the_exact_binomial_one() -> None:
    for count in range(8):
        for better in range(count + 1):
            wins = [sum(flips) for flips in itertools.product((0, 1), repeat=count)]
            distance = abs(better - count / 2)
            share = sum(abs(won - count / 2) >= distance for won in wins) / 2**count
            assert sign_test(better, count - better) == pytest.approx(share, abs=1e-12)


def test_the_sign_test_of_many_items_neither_overflows_nor_underflows() -> None:
    assert sign_test(3000, 3000) == 1.0
    # normal approximation with continuity correction
    expected = math.erfc((200 - 1) / math.sqrt(4000) / math.sqrt(2))
    assert sign_test(2100, 1900) == pytest.approx(expected, rel=0.01)
    assert sign_test(4000, 0) == 0.0


def test_items_are_paired_and_counted(make_folder: Callable[..., Path]) -> None:
    def better(item: Item, number: int) -> float:
        return {0: 1.0, 1: 0.75, 2: 0.25}.get(item.number, 0.5)

    first = make_folder("first", score=constant(0.5))
    second = make_folder("second", score=better, changes={"model": {"name": "other"}})
    (found,) = compared(first, second)
    assert (found.first, found.second) == ("first", "second")
    assert (found.num_items, found.better, found.worse, found.equal) == (18, 2, 1, 15)
    assert found.p_value == sign_test(2, 1) == 1.0
    assert found.interval is not None
    assert found.difference is not None
    assert found.difference == pytest.approx((0.5 + 0.25 - 0.25) / 18)
    assert found.interval[0] < found.difference < found.interval[1]
    assert (dict(found.left_out), list(found.remarks)) == ({}, [])
    (back,) = compared(second, first)
    assert (back.better, back.worse, back.difference) == (1, 2, pytest.approx(-found.difference))


def test_a_category_that_fell_is_named(make_folder: Callable[..., Path]) -> None:
    def score(item: Item, number: int) -> float:
        return {"colors": 0.5, "counting": 0.47, "position": 0.495}[item.category]

    first, second = make_folder("first", score=constant(0.5)), make_folder("second", score=score)
    (found,) = compared(first, second)
    assert found.fallen == {"counting": pytest.approx(-0.03)}
    assert comparison_notes(found)[0] == "second against first: counting fell by 0.030."
    assert compared(second, first)[0].fallen == {}


def test_an_item_counts_by_the_mean_of_its_samples(make_folder: Callable[..., Path]) -> None:
    first = make_folder("first", score=lambda item, number: float(number == 0))
    second = make_folder("second", score=lambda item, number: float(number == 3))
    (found,) = compared(first, second)
    assert (found.better, found.worse, found.equal, found.difference) == (0, 0, 18, 0.0)


def test_all_pairs_are_compared_in_order(make_folder: Callable[..., Path]) -> None:
    folders = [make_folder(name) for name in ("a", "b", "c")]
    pairs = [(one.first, one.second) for one in compared(*folders)]
    assert pairs == [("a", "b"), ("a", "c"), ("b", "c")]


def test_items_that_cannot_be_paired_are_counted(make_folder: Callable[..., Path]) -> None:
    def refuses(item: Item, number: int) -> str:
        return "refusal" if item.number == 4 and number == 2 else "judged"

    first = make_folder("first", items_per_category=6)
    second = make_folder("second", items_per_category=5, outcome=refuses)
    (found,) = compared(first, second)
    # The categories of both folders agree for 0..4, 6..9 and 12..14.
    assert dict(found.left_out) == {
        "a sample without a score": 1,
        "same name, but another prompt": 3,
        "only in first": 3,
    }
    assert found.num_items == 11
    assert any(remark.startswith("items_sha256 differs") for remark in found.remarks)
    assert "num_samples differs: 60 against 72." in found.remarks


def test_missing_samples_have_the_worst_score(make_folder: Callable[..., Path]) -> None:
    def loses(item: Item, number: int) -> str:
        return "missing" if item.number == 0 else "broken" if item.number == 1 else "judged"

    first = make_folder("first", score=constant(0.5))
    second = make_folder("second", score=constant(0.5), outcome=loses)
    (found,) = compared(first, second)
    assert (found.worse, found.equal, found.difference) == (2, 16, pytest.approx(-1 / 18))
    assert "8 samples of second are missing or broken: they score 0." in found.remarks
    worst = {"worst_score": -2.0}
    third = make_folder("third", score=constant(-2.0), changes=worst)
    fourth = make_folder("fourth", score=constant(-2.0), outcome=loses, changes=worst)
    (found,) = compared(third, fourth)
    assert found.equal == 18
    assert "8 samples of fourth are missing or broken: they score -2." in found.remarks


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({"seed": 7}, "seed differs: 7 against 42."),
        (
            {"sampler": {"num_inference_steps": 50, "guidance_scale": 3.0}},
            "sampler differs: num_inference_steps=50 against num_inference_steps=30.",
        ),
        ({"version": "2.0"}, "version differs: 2.0 against 1.0."),
        ({"commit": "f" * 40}, f"commit differs: {'f' * 16}... against 0123abcd."),
        (
            {"model": {"name": "tiny", "weights_sha256": "other"}},
            f"the models have one name but differ: weights_sha256=other against "
            f"weights_sha256={'5e' * 32}.",
        ),
        ({}, "both evaluate the same model."),
    ],
)
def test_differences_between_the_evaluations_are_said(
    make_folder: Callable[..., Path], changes: dict[str, Any], remark: str
) -> None:
    (found,) = compared(make_folder("first"), make_folder("second", changes=changes))
    assert remark in found.remarks


def test_other_titles_are_refused_with_both_titles(make_folder: Callable[..., Path]) -> None:
    folders = make_folder("first"), make_folder("second", judge="clip")
    with pytest.raises(
        UsageError, match=r"'fake\(mask2former-tiny-00000000\)' and 'fake\(clip\)' are different"
    ):
        compared(*folders)


def test_a_folder_is_named_once(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder("first")
    with pytest.raises(UsageError, match="first is named twice"):
        compared(folder, tmp_path / "." / "first")


def test_folders_of_one_name_are_told_apart(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    for place in ("a", "b"):
        make_folder("run").rename(tmp_path / place)
        (tmp_path / f"{place}-all").mkdir()
        (tmp_path / place).rename(tmp_path / f"{place}-all" / "run")
    runs = [Evaluation.read(tmp_path / f"{place}-all" / "run") for place in ("a", "b")]
    assert labels_of(runs) == [str(one.folder) for one in runs]


def test_a_comparison_is_the_same_each_time(make_folder: Callable[..., Path]) -> None:
    second = make_folder("second", score=lambda item, number: math.sin(item.number) ** 2)
    first = make_folder("first")
    assert compared(first, second) == compared(first, second)
    assert json.dumps(compared(first, second)[0].interval)
