"""Reading and tables of ImgEdit-Bench against recorded ones (`imgedit`)."""

from typing import Any

import pytest

from blip3o.eval.imgedit import official_average, official_mean, official_types


@pytest.mark.parity_cases("imgedit/answers.json")
def test_answers_are_read_as_recorded(case: Any) -> None:
    rows = case.settings()
    assert rows
    for row in rows:
        wanted = row["expected"]
        if "error" in wanted:
            assert wanted["error"] == "ValueError"
            with pytest.raises(ValueError, match="invalid literal"):
                official_average(row["answer"])
        else:
            assert official_average(row["answer"]) == wanted["average"], row["id"]


@pytest.mark.parity_cases("imgedit/tables.json")
def test_tables_equal_recorded_ones(case: Any) -> None:
    rows = case.settings()
    assert rows
    for row in rows:
        wanted = row["expected"]
        read = {key: official_average(answer) for key, answer in row["answers"].items()}
        averages = {key: value for key, value in read.items() if value is not None}
        assert averages == wanted["averages"]
        assert sorted(read.keys() - averages.keys()) == wanted["no_answer"]
        types = {key: entry["edit_type"] for key, entry in row["meta"].items()}
        assert official_types(types, averages) == wanted["types"]
        assert official_mean(averages) == wanted["hard_single_turn_average"]
