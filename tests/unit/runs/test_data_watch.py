"""A resumed run reports changes of its data, and reports none for unchanged data."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip3o.data.pack import pack
from blip3o.data.sources.folder import FolderConfig
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.data.sources.webdataset import WebDatasetConfig
from blip3o.runs.data_watch import watch_data
from blip3o.train.environment import Notes


def image(file: Path, level: int) -> None:
    Image.new("RGB", (8, 8), (level, 0, 0)).save(file)
    file.with_suffix(".txt").write_text(f"a red cat {level}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    for number in range(4):
        image(made / f"{number}.png", number)
    rows = [{"image": f"{number}.png", "caption": f"cat {number}"} for number in range(4)]
    (made / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def start(run_dir: Path, source: Any, *, step: int | None = None, steps: int = 100) -> Notes:
    """Starts a run and leaves a checkpoint of a step."""
    run_dir.mkdir(exist_ok=True)
    notes = watch_data(run_dir, [source.build()], steps)
    if step is not None:
        (run_dir / "checkpoints" / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)
    return notes


def add(folder: Path) -> None:
    image(folder / "9.png", 9)


def remove(folder: Path) -> None:
    (folder / "1.png").unlink()


def swap(folder: Path) -> None:
    (folder / "1.png").rename(folder / "5.png")


def repaint(folder: Path) -> None:
    image(folder / "1.png", 200)


def reword(folder: Path) -> None:
    (folder / "1.txt").write_text("something else")


CHANGES: dict[str, tuple[Callable[[Path], None], str, bool]] = {
    "add": (add, "4 records are 5 now, 2 files added (", False),
    "remove": (remove, "4 records are 3 now, 1 file removed (", False),
    "swap": (swap, "1 file added (", False),
    "repaint": (repaint, " edited (", True),
    "reword": (reword, "1 file edited (", True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_resumed_run_names_the_files_of_a_folder_that_changed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    change, said, keeps_order = CHANGES[name]
    source = FolderConfig(path=str(folder), name="own")
    start(tmp_path / "run", source, step=7)
    assert start(tmp_path / "run", source).metrics == {}
    assert capsys.readouterr().err == ""
    change(folder)
    notes = start(tmp_path / "run", source)
    err = capsys.readouterr().err
    assert err.startswith(f"warning: the data changed since the last start of {tmp_path / 'run'}:")
    assert said in err
    assert "from step 7" in err
    assert err.count("\n") == 1
    assert ("the order of records stays the same" in err) == keeps_order
    assert notes.metrics == {"data_changes": 1}
    changes = notes.environment["data_changes"]
    assert isinstance(changes, list)
    (noted,) = changes
    assert noted["step"] == 7
    assert said in noted["changes"][0]
    again = start(tmp_path / "run", source)  # reported once, and noted permanently
    assert capsys.readouterr().err == ""
    assert again.metrics == {"data_changes": 1}


@pytest.mark.parametrize("change", [add, repaint])
def test_images_that_a_list_names_count_as_its_files(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, change: Callable[[Path], None]
) -> None:
    source = JsonlConfig(path=str(folder / "list.jsonl"), name="own")
    start(tmp_path / "run", source, step=7)
    change(folder)  # an added image that the list does not name does not count
    start(tmp_path / "run", source)
    err = capsys.readouterr().err
    assert (err == "") == (change is add)
    with (folder / "list.jsonl").open("a") as file:
        file.write(json.dumps({"image": "0.png", "caption": "again"}) + "\n")
    start(tmp_path / "run", source)
    assert "4 records are 5 now, 1 file edited" in capsys.readouterr().err


def test_added_shards_are_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "tars"
    pack(str(folder), out, name="a", shard_size=10, jobs=1)
    source = WebDatasetConfig(path=f"{out}/*.tar", name="own")
    start(tmp_path / "run", source, step=7)
    start(tmp_path / "run", source)
    pack(str(folder), out, name="b", shard_size=10, jobs=1)
    capsys.readouterr()
    start(tmp_path / "run", source)
    err = capsys.readouterr().err
    assert "4 records are 8 now, 1 file added" in err
    assert "b-000000.tar" in err


def test_a_first_start_and_a_finished_run_compare_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = FolderConfig(path=str(folder), name="own")
    start(tmp_path / "run", source)
    add(folder)
    start(tmp_path / "run", source, step=100)  # no step was saved before
    remove(folder)
    assert start(tmp_path / "run", source, steps=100) == Notes()
    assert capsys.readouterr().err == ""


def test_a_run_of_an_older_version_reports_that_changes_are_unknown(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = FolderConfig(path=str(folder), name="own")
    start(tmp_path / "run", source, step=7)
    (tmp_path / "run" / "data_files.json").unlink()
    start(tmp_path / "run", source)
    assert "changes of its data are not known" in capsys.readouterr().err


def test_circular_and_broken_links_are_accepted(folder: Path, tmp_path: Path) -> None:
    os.symlink("nowhere.png", folder / "7.png")
    os.symlink(folder, folder / "circle")
    (folder / ".hidden").mkdir()
    found = list(FolderConfig(path=str(folder), name="own").build().files())
    assert len(found) == 9  # four images with a text each, and the list


@pytest.mark.parametrize("change", [add, repaint])
@pytest.mark.parametrize(
    "row",
    [
        {"image": ["0.png", "1.png"]},
        {"image": {"path": "1.png"}},
        {"file_name": "1.png"},
        {"image": "%31.png"},
        {"source": "0.png", "target": "1.png"},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "1.png"}]}]},
        {"conversations": [{"from": "user", "value": "<img>1.png</img> What?"}]},
        {"image": "gone.png", "images": None},
        {"image": "data:image/png;base64,QUJD"},
    ],
)
def test_images_of_a_list_are_found_in_every_form_of_naming(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    row: dict[str, Any],
    change: Callable[[Path], None],
) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "d.jsonl").write_text(f"{json.dumps(row)}\nno record\n[1]\n")
    source = JsonlConfig(path=str(lists / "d.jsonl"), name="own", image_folder=str(folder))
    start(tmp_path / "run", source, step=7)
    change(folder)
    start(tmp_path / "run", source)
    is_named = "1.png" in json.dumps(row).replace("%31", "1")
    assert ("1 file edited (" in capsys.readouterr().err) == (change is repaint and is_named)
