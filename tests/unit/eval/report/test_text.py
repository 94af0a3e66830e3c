"""The report as Markdown, and the file that it writes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Item
from blip3o.eval.report.text import report


def test_one_evaluation_as_markdown(make_folder: Callable[..., Path]) -> None:
    folder = make_folder(changes={"notes": ["a | note\nof \x1b[31mtwo lines \ud800"]})
    text = report([folder], None)
    lines = text.splitlines()
    assert lines[0] == "# fake(mask2former-tiny-00000000)"
    assert "| overall  | 0.500 [0.500, 0.500] |" in lines
    assert "- tiny: a \\| note of [31mtwo lines ?" in lines
    assert "| judged            | 72   |" in lines
    assert "| seed           | 42" in text
    assert "Comparison" not in text
    assert text.endswith("|\n")
    assert sorted(file.name for file in folder.iterdir()) == [
        "items.jsonl",
        "results.json",
        "samples",
        "verdicts.jsonl",
    ]


def test_several_evaluations_are_compared(make_folder: Callable[..., Path]) -> None:
    def right(item: Item, number: int) -> float:
        return 1.0

    text = report([make_folder("a"), make_folder("b", score=right, changes={"seed": 1})], None)
    assert "| b against a | 18    | 18     | 0     | 0     | < 0.0001" in text
    assert "- b against a: seed differs: 1 against 42." in text
    assert "|          | a " in text


def test_other_titles_are_refused_or_shown_without_a_comparison(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folders = [make_folder("a"), make_folder("b", remarks=["rewritten prompts"])]
    with pytest.raises(UsageError, match="; rewritten prompts' are different benchmarks"):
        report(folders, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
    text = report(folders, tmp_path / "page.html", side_by_side=True)
    assert "These are different benchmarks: their figures cannot be compared." in text
    assert "- b: fake(mask2former-tiny-00000000); rewritten prompts" in text
    assert "Comparison by item" not in text
    page = (tmp_path / "page.html").read_text()
    assert "These are different benchmarks" in page
    assert "Comparison by item" not in page


def test_the_page_is_written_to_a_file_or_into_a_folder(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_folder()
    report([folder], tmp_path / "new" / "page.html")
    report([folder], folder)
    page = (tmp_path / "new" / "page.html").read_bytes()
    assert page == (folder / "report.html").read_bytes()
    assert page.startswith(b"<!doctype html>")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write .*page.html"):
        report([folder], tmp_path / "file" / "page.html")
