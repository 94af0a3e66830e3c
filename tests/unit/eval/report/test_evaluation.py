"""The folder of an evaluation is read and checked as a whole."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.eval.report.evaluation import Evaluation, Place, outcomes_of


def change_line(path: Path, number: int, /, **changes: Any) -> None:
    lines = path.read_text().splitlines()
    lines[number] = json.dumps({**json.loads(lines[number]), **changes})
    path.write_text("\n".join(lines) + "\n")


def place(evaluation: Evaluation, item: str, number: int) -> Place | None:
    (row,) = [row for row in evaluation.rows() if (row.item.id, row.number) == (item, number)]
    return evaluation.place(row)


def test_a_finished_folder_has_no_remarks(make_folder: Callable[..., Path]) -> None:
    evaluation = Evaluation.read(make_folder())
    assert not evaluation.remarks
    assert len(evaluation.rows()) == 72
    assert outcomes_of(evaluation.rows()) == {"judged": 72}
    item = evaluation.items[1]
    assert (item.id, item.number, item.num_samples, item.sources) == ("00001", 1, 4, ())
    assert place(evaluation, "00001", 3) == Place(evaluation.folder / "samples/00001/3.png")


def test_changed_items_are_refused(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    file = folder / "items.jsonl"
    file.write_text(file.read_text().replace("prompt 3 ", "prompt three "))
    with pytest.raises(UsageError, match=r"items.jsonl is not the file that was scored: its hash"):
        Evaluation.read(folder)


@pytest.mark.parametrize("name", ["items.jsonl", "results.json"])
def test_a_folder_without_one_of_its_files_is_refused(
    make_folder: Callable[..., Path], name: str
) -> None:
    folder = make_folder()
    (folder / name).unlink()
    with pytest.raises(UsageError, match=name):
        Evaluation.read(folder)


def test_verdicts_of_another_judge_only_are_refused(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    file = folder / "verdicts.jsonl"
    file.write_text(file.read_text().replace("mask2former-tiny", "another"))
    with pytest.raises(UsageError, match=r"no verdict of mask2former-tiny.* of another-00000000:"):
        Evaluation.read(folder)


def test_some_verdicts_of_another_judge_take_no_part_and_are_said(
    make_folder: Callable[..., Path],
) -> None:
    folder = make_folder()
    change_line(folder / "verdicts.jsonl", 0, judge="another")
    evaluation = Evaluation.read(folder)
    assert ("00000", 0) not in evaluation.verdicts
    assert evaluation.remarks == [
        "1 verdicts of another judge, another, take no part.",
        "results.json counts the outcomes 72 judged, but verdicts.jsonl has 71 judged, 1 missing: "
        "the figures are not those of the verdicts.",
    ]


def test_the_last_verdict_on_a_sample_counts(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    file = folder / "verdicts.jsonl"
    line = json.loads(file.read_text().splitlines()[0])
    with file.open("a") as out:
        out.write(json.dumps({**line, "score": 0.75, "sha256": "new"}) + "\n")
    evaluation = Evaluation.read(folder)
    assert evaluation.verdicts["00000", 0].score == 0.75
    assert not evaluation.remarks


def test_verdicts_on_unknown_samples_are_said(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    file = folder / "verdicts.jsonl"
    line = json.loads(file.read_text().splitlines()[0])
    with file.open("a") as out:
        out.write(json.dumps({**line, "number": 4}) + "\n")
    assert Evaluation.read(folder).remarks == ["1 verdicts on samples that were not asked for."]


def test_an_unfinished_last_line_is_no_verdict_but_a_damaged_line_is_refused(
    make_folder: Callable[..., Path],
) -> None:
    folder = make_folder()
    file = folder / "verdicts.jsonl"
    whole = file.read_text()
    file.write_text(whole + whole[:20])
    assert len(Evaluation.read(folder).verdicts) == 72
    file.write_text(whole[:20] + "\n" + whole)
    with pytest.raises(UsageError, match=r"line 1 of .*verdicts.jsonl is damaged"):
        Evaluation.read(folder)
    for change in ({"outcome": "fine"}, {"score": "1"}, {"tile": [0, 1]}, {"seconds": 1.5}):
        file.write_text(whole)
        change_line(file, 2, **change)
        with pytest.raises(UsageError, match=r"line 3 of .*verdicts.jsonl is damaged"):
            Evaluation.read(folder)


def test_an_item_without_its_fields_is_refused(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    text = '{"id": "0"}\n'
    (folder / "items.jsonl").write_text(text)
    results = json.loads((folder / "results.json").read_text())
    results["items_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(UsageError, match=r"line 1 of .*items.jsonl is not an item"):
        Evaluation.read(folder)


def test_a_verdict_may_name_its_file_and_tile(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_folder()
    grid = tmp_path / "grid.png"
    Image.new("RGB", (4, 4)).save(grid)
    change_line(folder / "verdicts.jsonl", 0, file=str(grid), tile=[1, 0, 2, 2])
    change_line(folder / "verdicts.jsonl", 1, file="samples/00000/1.png")
    change_line(folder / "verdicts.jsonl", 2, file="gone.png")
    evaluation = Evaluation.read(folder)
    assert place(evaluation, "00000", 0) == Place(grid, (1, 0, 2, 2))
    assert place(evaluation, "00000", 1) == Place(folder / "samples/00000/1.png")
    assert place(evaluation, "00000", 2) is None


def test_other_counts_in_the_results_are_said(make_folder: Callable[..., Path]) -> None:
    folder = make_folder(changes={"num_samples": 71})
    assert Evaluation.read(folder).remarks == [
        "results.json counts 71 samples, but items.jsonl asks for 72."
    ]
    evaluation = Evaluation.read(make_folder("other", changes={"outcomes": {"judged": 60}}))
    assert len(evaluation.remarks) == 1
    assert (
        "counts the outcomes 60 judged, but verdicts.jsonl has 72 judged" in evaluation.remarks[0]
    )
