"""The scenes benchmark as a command runs it: its files, also after a failure."""

import json
from pathlib import Path
from typing import NoReturn

import pytest

from blip3o import Blip3oPipeline
from blip3o.core.errors import UsageError
from blip3o.core.lock import locked
from blip3o.eval import WriteRow, run_benchmark
from blip3o.eval.scenes import ScenesBenchmark

FEW = (
    *("prompts_per_category=1", "images_per_prompt=1", "num_edits=2", "num_reconstructions=1"),
    *("num_questions=0", "num_captions=0"),
)


def test_figures_and_verdicts_are_written(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    results = run_benchmark("scenes", str(tiny_folder), out, FEW, device="cpu", dtype="fp32")
    stored = json.loads((out / "results.json").read_text())
    assert stored == results
    assert {"benchmark", "overall", "by_category", "num_samples", "settings"} <= stored.keys()
    assert len(stored["by_category"]) == stored["num_samples"] == 6
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [row["part"] for row in rows] == ["text_to_image"] * 6 + ["edit"] * 2 + ["reconstruct"]


def test_a_failed_run_keeps_the_files_of_the_run_before(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: ScenesBenchmark, pipe: Blip3oPipeline, out: Path, write: WriteRow) -> NoReturn:
        write({"part": "edit"})
        (out / "edits.png").write_text("of this run")
        raise RuntimeError("no memory")

    monkeypatch.setattr(ScenesBenchmark, "run", fail)
    (tmp_path / "samples.jsonl").write_text("of the run before\n")
    (tmp_path / "edits.png").write_text("of the run before")
    with pytest.raises(RuntimeError, match="no memory"):
        run_benchmark("scenes", str(tiny_folder), tmp_path, device="cpu")
    assert (tmp_path / "samples.jsonl").read_text() == "of the run before\n"
    assert (tmp_path / "edits.png").read_text() == "of the run before"
    assert {file.name for file in tmp_path.iterdir()} == {"samples.jsonl", "edits.png"}


def test_a_run_of_other_parts_removes_the_sheets_of_the_run_before(
    tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.png").write_text("a file of the user")
    few = [setting for setting in FEW if setting != "num_edits=2"]
    for edits, names in ((1, {"edits", "reconstructions", "text_to_image"}), (0, set())):
        parts = few if edits else [*few, "prompts_per_category=0", "num_reconstructions=0"]
        settings = [*parts, f"num_edits={edits}"]
        run_benchmark("scenes", str(tiny_folder), tmp_path, settings, device="cpu")
        stored = json.loads((tmp_path / "results.json").read_text())
        assert {Path(name).stem for name in stored["sheets"]} == names
        assert {file.stem for file in tmp_path.glob("*.png")} == {*names, "mine"}


def test_a_folder_that_cannot_be_written_is_refused_before_a_model_is_loaded(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write to"):
        run_benchmark("scenes", "no such model", tmp_path / "file")


def test_more_prompts_than_exist_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="different prompts, not 600"):
        run_benchmark("scenes", str(tiny_folder), tmp_path, ["prompts_per_category=600"])


def test_a_second_evaluation_into_a_folder_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with (
        locked(tmp_path / ".lock"),
        pytest.raises(UsageError, match=r"^process \d+ on .* evaluates into .*another --out$"),
    ):
        run_benchmark("scenes", str(tiny_folder), tmp_path, FEW, device="cpu", dtype="fp32")
    assert not list(tmp_path.iterdir())
