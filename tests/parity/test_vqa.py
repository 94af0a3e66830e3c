"""Normalized answers and soft accuracy of VQAv2 against recorded ones (`vqa`)."""

from typing import Any

import pytest

from blip3o.eval.vqa import normalize_answer, soft_accuracy

each_case = pytest.mark.parity_cases("vqa/*.json")


@each_case
def test_normalized_answers_equal_recorded_ones(case: Any) -> None:
    recorded = case.settings()
    rows = recorded["normalize"] + recorded["contractions"]
    assert rows
    assert {r["text"]: normalize_answer(r["text"]) for r in rows} == {
        r["text"]: r["vqav2"] for r in rows
    }


@each_case
def test_separated_possessives_equal_recorded_ones(case: Any) -> None:
    rows = [row for row in case.settings()["normalize"] if "textvqa_call" in row]
    assert rows
    found = {row["text"]: normalize_answer(row["text"], split_possessive=True) for row in rows}
    assert found == {row["text"]: row["textvqa_call"] for row in rows}


@each_case
def test_soft_accuracies_equal_recorded_ones(case: Any) -> None:
    rows = case.settings()["accuracy"]
    assert rows
    for row in rows:
        found = soft_accuracy(row["prediction"], row["answers"])
        assert found == pytest.approx(row["expected"], abs=1e-12), row
