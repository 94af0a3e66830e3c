"""Scores of DPG-Bench against those of the official program, faults included (`dpg`)."""

from typing import Any

import pytest

from blip3o.eval.dpg.official import official_figures, official_image
from blip3o.eval.dpg.table import read_table


@pytest.mark.parity_cases("dpg/*.json")
def test_the_official_reading_equals_recorded_scores(case: Any) -> None:
    recorded = case.settings()
    assert recorded
    for one in recorded:
        table, expected = read_table(one["csv"]), one["expected"]
        assert bool(table.official_stop) == bool(expected["error"]), one["note"]
        if table.official_stop:
            continue
        images, failed = {}, []
        for name, file in one["files"].items():
            item = name.partition(".")[0]
            keys = {q.key: q for q in table.questions.get(item, ())}
            asked = [keys[key] for key in table.official.get(item, ())]
            image = None
            if file is not None and asked:
                tiles = [file["answers"].get(str(number), {}) for number in range(one["pic_num"])]
                # The text of a question that the official program never asks may be absent.
                answers = [{q.key: tile.get(q.text, "") for q in keys.values()} for tile in tiles]
                image = official_image(asked, answers)
            if image is None:
                failed.append(name)
            else:
                images[name] = image
        assert sorted(failed) == sorted(expected["failed"]), one["note"]
        assert set(images) == set(expected["per_image"]), one["note"]
        for name, image in images.items():
            wanted = expected["per_image"][name]
            assert image.tiles == pytest.approx(wanted["tiles"], rel=1e-9), one["note"]
            assert image.score == pytest.approx(wanted["mean"], rel=1e-9), one["note"]
        figures = official_figures(list(images.values()))
        assert figures["level_1"] == pytest.approx(expected["l1"], rel=1e-9), one["note"]
        assert figures["level_2"] == pytest.approx(expected["l2"], rel=1e-9), one["note"]
        if expected["score"] is None:
            assert figures["score"] is None, one["note"]
        else:
            assert figures["score"] == pytest.approx(expected["score"], rel=1e-9), one["note"]
