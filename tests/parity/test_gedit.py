"""Reading, tries and tables of GEdit-Bench against recorded ones (`gedit`)."""

import math
from typing import Any

import pytest

from blip3o.eval.gedit.official import official_sample, official_scores
from blip3o.eval.gedit.reading import two_grades
from blip3o.eval.gedit.statistics import ScoredEdit, statistics


@pytest.mark.parity_cases("gedit/answers.json")
def test_answers_are_read_as_recorded(case: Any) -> None:
    rows = case.settings()
    assert rows
    for row in rows:
        parsed = row["expected"]["parsed"]
        first = official_scores(row["answer"], is_first=True)
        if isinstance(parsed, str):
            assert first == "stopped", row["id"]
        else:
            assert first == (None if parsed is None else parsed["score"]), row["id"]
        is_same = row["expected"]["second_try"] == "same"
        wanted = first if is_same else "random"
        assert official_scores(row["answer"], is_first=False) == wanted, row["id"]


@pytest.mark.parity_cases("gedit/answers.json")
def test_our_reader_never_differs_from_recorded_grades_in_range(case: Any) -> None:
    num_both = 0
    for row in case.settings():
        ours, parsed = two_grades(row["answer"]), row["expected"]["parsed"]
        if ours is not None and isinstance(parsed, dict):
            num_both += 1
            assert list(ours.values) == parsed["score"], row["id"]
    assert num_both > 5


@pytest.mark.parity_cases("gedit/attempts.json")
def test_tries_end_as_recorded(case: Any) -> None:
    rows = case.settings()
    assert rows
    for row in rows:
        answers, wanted = row["answers"], row["expected"]
        found = official_sample(list(zip(answers[::2], answers[1::2], strict=True)))
        assert found.calls == wanted["calls"], row["id"]
        if "error" in wanted:
            assert found.outcome == "stopped", row["id"]
            continue
        assert found.outcome == "scored", row["id"]
        assert (found.semantics, found.quality) == (wanted["semantics"], wanted["quality"])
        assert found.overall == pytest.approx(wanted["overall"], abs=1e-12), row["id"]


@pytest.mark.parity_cases("gedit/tables.json")
def test_tables_equal_recorded_ones(case: Any) -> None:
    rows = case.settings()
    assert rows
    for row in rows:
        for language, tables in row["expected"].items():
            found = statistics(_edits(row["rows"], language))
            assert len(found) == len(tables)
            for name, table in tables.items():
                average = f"avg_{name.removesuffix('_intersection')}"
                own = {average if key == "average" else key: v for key, v in found[name].items()}
                values = {key: math.nan if v is None else v for key, v in own.items()}
                assert values == pytest.approx(table, abs=1e-12, nan_ok=True), name


def _edits(rows: dict[str, list[dict[str, Any]]], language: str) -> list[ScoredEdit]:
    return [
        ScoredEdit(
            task_type=kind,
            in_intersection=one["intersection_exist"],
            semantics=one["sementics_score"],
            quality=one["quality_score"],
        )
        for kind, samples in rows.items()
        for one in samples
        if one["instruction_language"] == language
    ]
