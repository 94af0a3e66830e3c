"""Reading and tables of WISE against recorded ones (`wise`)."""

import json
from typing import Any

import pytest

from blip3o.eval.judges.reading import named_numbers
from blip3o.eval.wise import official
from blip3o.eval.wise.versions import LEGACY, VERIFIED

VERSIONS = {version.name: version for version in (LEGACY, VERIFIED)}


@pytest.mark.parity_cases("wise/answers.json")
def test_answers_are_read_as_recorded(case: Any) -> None:
    rows = case.settings()
    assert rows
    for row in rows:
        version, wanted = VERSIONS[row["benchmark"]], row["expected"]
        scores = official.reader(version)(row["text"])
        assert scores == wanted["scores"], row["id"]
        if "complete" in wanted:
            assert (set(version.score_keys()) <= scores.keys()) is wanted["complete"], row["id"]
        if wanted.get("wiscore") is not None:
            assert version.score(scores) == wanted["wiscore"], row["id"]
        if "cleaned" in wanted:
            assert official.without_thoughts(row["text"]) == wanted["cleaned"], row["id"]


@pytest.mark.parity_cases("wise/answers.json")
def test_our_reader_never_differs_from_the_recorded_numbers(case: Any) -> None:
    num_both = 0
    for row in case.settings():
        version, recorded = VERSIONS[row["benchmark"]], row["expected"]["scores"]
        ours = named_numbers(row["text"], list(version.criteria), version.most)
        if ours is None or not set(version.score_keys()) <= recorded.keys():
            continue
        num_both += 1
        assert dict(zip(version.score_keys(), ours.values, strict=True)) == recorded, row["id"]
    assert num_both > 20


@pytest.mark.parity_cases("wise/attempts.json")
def test_attempts_end_as_recorded(case: Any) -> None:
    rows = case.settings()
    assert rows
    for row in rows:
        found = official.first_read(LEGACY, row["answers_null_is_error"])
        wanted = row["expected"]
        assert found.calls == wanted["calls"], row["id"]
        assert (found.scores is not None) is (wanted["status"] == "ok"), row["id"]
        if found.scores is not None:
            assert found.scores == {key: wanted["score"][key] for key in LEGACY.score_keys()}


@pytest.mark.parity_cases("wise/tables.json")
def test_tables_equal_recorded_ones(case: Any) -> None:
    rows = case.settings()
    assert rows
    for row in rows:
        version, wanted = VERSIONS[row["benchmark"]], row["expected"]
        files = [
            [_line(version.score_keys(), one) for one in file["rows"]] + file["more_lines"]
            for file in row["files"]
        ]
        table = official.table(version, files, row["category"])
        assert table.missing_ids == wanted["missing_ids"], row["id"]
        assert table.num_skipped == wanted["warnings"], row["id"]
        assert bool(table.missing_ids) is wanted["aborted"], row["id"]
        assert table.printed_overall == wanted["printed_overall"], row["id"]
        assert table.overall == pytest.approx(wanted["overall"], abs=1e-12), row["id"]
        means = {name.upper(): one.mean for name, one in table.by_category.items()}
        expected = {name: one["mean"] for name, one in wanted["by_category"].items()}
        assert means == pytest.approx(expected, abs=1e-12), row["id"]
        for name, one in table.by_category.items():
            assert one.n == wanted["by_category"][name.upper()]["n"], row["id"]


def _line(keys: list[str], row: list[float]) -> str:
    return json.dumps({"prompt_id": row[0], **dict(zip(keys, row[1:], strict=True))})
