"""The tables of a report."""

import dataclasses

from blip3o.eval.report.compare import Comparison
from blip3o.eval.report.intervals import Intervals
from blip3o.eval.report.results import Results
from blip3o.eval.report.tables import (
    cell,
    comparison_notes,
    comparison_table,
    figure,
    figure_tables,
    outcome_table,
    p_text,
    scale_of,
    score_table,
)

RESULTS = Results(
    benchmark="fake",
    title="fake(j)",
    judge="j",
    overall=0.81234,
    by_category={"colors": 0.75, "counting": None},
    num_samples=2212,
    outcomes={"judged": 2211, "cut": 1},
    items_sha256="ab",
    model={"name": "m"},
    sampler={"steps": 30},
    seed=1,
    version="1",
    commit="c",
    intervals=Intervals(overall=(0.8, 0.83), by_category={"colors": None, "counting": None}),
)


def test_scores_stand_beside_each_other_with_their_intervals() -> None:
    other = dataclasses.replace(RESULTS, by_category={"position": 1.0}, intervals=Intervals())
    table = score_table(["a", "b"], [RESULTS, other])
    assert table.head == ["", "a", "b"]
    assert table.rows == [
        ["overall", "0.812 [0.800, 0.830]", "0.812"],
        ["colors", "0.750", "-"],
        ["counting", "open", "-"],
        ["position", "-", "1.000"],
    ]
    counts = outcome_table(["a", "b"], [RESULTS, dataclasses.replace(other, outcomes={"empty": 3})])
    assert counts.rows[1:] == [
        ["judged", "2,211", "0"],
        ["cut", "1", "0"],
        ["empty", "0", "3"],
    ]


def test_the_scale_is_that_of_the_largest_figure() -> None:
    def scale(overall: float | None, **categories: float) -> float:
        return scale_of([dataclasses.replace(RESULTS, overall=overall, by_category=categories)])

    assert scale(0.5, a=1.0) == 1
    assert scale(6.67) == 10
    assert scale(79.36, a=5.0) == 100
    assert scale(1528.0) == 1528
    assert scale(None) == 1
    assert (figure(79.358, 100), figure(0.5, 1), figure(None, 1)) == ("79.36", "0.500", "open")


def test_figures_of_two_programs_become_columns_of_one_table() -> None:
    figures = {
        "compat": {"total": 80.123456, "levels": {"color": 1.0}},
        "count": 3,
        "corrected": {"total": 79.5, "levels": {"color": 0.5, "shape": 0.25}},
        "by_tag": {"left": {"any": 0.5}},
    }
    plain, both, deep = figure_tables(figures, "Figures")
    assert (plain.title, plain.rows) == ("Figures", [["count", "3"]])
    assert (both.title, both.head) == ("Figures: compat, corrected", ["", "compat", "corrected"])
    assert both.rows == [
        ["total", "80.12", "79.5"],
        ["levels / color", "1", "0.5"],
        ["levels / shape", "-", "0.25"],
    ]
    assert (deep.title, deep.rows) == ("Figures: by_tag: left", [["any", "0.5"]])
    assert figure_tables({}) == []


def test_cells_of_all_kinds() -> None:
    assert [cell(value) for value in (None, True, 7, 55300, 0.123456, "text", [1, 0.5])] == [
        "-", "yes", "7", "55,300", "0.1235", "text", "1, 0.5",
    ]  # fmt: skip
    assert cell([{"a": 1}]) == '[{"a": 1}]'
    assert len(cell("x" * 1000)) == 303


def test_a_comparison_is_a_row_and_its_losses_are_sentences() -> None:
    comparison = Comparison(
        first="a",
        second="b",
        num_items=553,
        better=30,
        worse=10,
        equal=513,
        p_value=0.00222,
        difference=0.0123,
        interval=(-0.001, 0.02),
        fallen={"counting": -0.0312},
        left_out={"only in a": 2},
        remarks=["seed differs: 1 against 2."],
    )
    table = comparison_table([comparison])
    assert table.rows == [
        ["b against a", "553", "30", "10", "513", "0.0022", "+0.0123 [-0.0010, +0.0200]"]
    ]
    assert comparison_notes(comparison) == [
        "b against a: counting fell by 0.031.",
        "b against a: 2 items are not compared: only in a.",
        "b against a: seed differs: 1 against 2.",
    ]
    empty = dataclasses.replace(comparison, difference=None, interval=None)
    assert comparison_table([empty]).rows[0][-1] == "-"
    assert (p_text(0.00001), p_text(1.0)) == ("< 0.0001", "1")
