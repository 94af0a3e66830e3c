"""Scans of a folder: its images, the files that are passed over, and its links."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.data.sources.folder import FolderConfig, FolderSource


def image(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return file


def source(folder: Path) -> FolderSource:
    return FolderConfig(path=str(folder), name="own").build()


def names(folder: Path) -> list[str]:
    own = source(folder)
    return [own.read(k)[0] for k in range(len(own))]


@pytest.mark.parametrize(
    "ending", ["png", "apng", "JPG", "jpeg", "jpe", "Jfif", "mpo", "dib", "tiff", "ppm", "PGM"]
)
def test_images_of_all_usual_endings_are_read(tmp_path: Path, ending: str) -> None:
    image(tmp_path / f"a.{ending}")
    assert names(tmp_path) == [f"a.{ending}"]
    assert source(tmp_path).passed_over == {}


@pytest.mark.parametrize("ending", ["heic", "HEIF", "jxl", "jp2", "svg", "psd", "CR2", "pdf"])
def test_images_of_other_kinds_are_counted_by_kind(tmp_path: Path, ending: str) -> None:
    image(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / f"b.{ending}")
    assert names(tmp_path) == ["a.png"]
    (reason,) = source(tmp_path).passed_over
    assert reason.startswith(f"an image of a kind that is not read: .{ending.lower()} (b.")


@pytest.mark.parametrize(
    "name",
    [
        *(".ipynb_checkpoints", "__MACOSX", "@eaDir", ".Trash-1000/files", ".thumbnails"),
        *(".cache/huggingface", ".git", "#recycle", "$RECYCLE.BIN", "in/@eaDir/a.png", ".hidden"),
        *(
            "lost+found",
            "in/deep/lost+found",
            "RECYCLER/S-1-5",
            "found.000",
            "Network Trash Folder",
        ),
        *("Temporary Items", "~snapshot/hourly.0", ".snapshot", "@Recently-Snapshot", "#snapshot"),
        *("System Volume Information", ".@__thumb", "in/.git/x", "in/deep/.ipynb_checkpoints"),
        *("__pycache__", ".AppleDouble", ".stversions", "in/$Recycle.Bin/S-1"),
    ],
)
def test_hidden_and_junk_folders_hold_no_records(tmp_path: Path, name: str) -> None:
    image(tmp_path / "a.png")
    image(tmp_path / name / "a-checkpoint.png")
    assert names(tmp_path) == ["a.png"]
    assert list(source(tmp_path).passed_over.values()) == [1]


def test_hidden_files_are_ignored_and_other_files_are_counted(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", ".b.png"):
        image(tmp_path / name)
    for name in ("ehthumbs_vista.db", "Icon\r", ".localized", "in/.DS_Store", "in/Desktop.ini"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "a.npz", "noending"):
        (tmp_path / name).write_bytes(b"x")
    assert names(tmp_path) == ["a.png"]
    assert sum(source(tmp_path).passed_over.values()) == 4  # two hidden images, a.npz, noending


def test_a_hidden_folder_that_is_named_itself_is_read(tmp_path: Path) -> None:
    image(tmp_path / ".data" / "@eaDir" / "a.png")
    assert names(tmp_path / ".data" / "@eaDir") == ["a.png"]


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with links of every kind."""
    own = tmp_path / "own"
    image(own / "a.png")
    image(tmp_path / "else" / "b.png")
    (tmp_path / "else" / "b.txt").write_text("next to the link's target")
    (own / "to_folder").symlink_to("../else")
    (own / "to_file.png").symlink_to("../else/b.png")
    (own / "to_file.txt").symlink_to("../else/b.txt")
    return own


def test_links_to_files_and_folders_are_followed(linked: Path) -> None:
    own = source(linked)
    records = {key: dict(fields) for key, _, fields in map(own.read, range(len(own)))}
    assert records == {
        "a.png": {},
        "to_file.png": {"caption": "next to the link's target"},
        "to_folder/b.png": {"caption": "next to the link's target"},
    }
    assert own.passed_over == {}


def test_links_in_a_circle_or_to_nowhere_are_left_out_and_counted(linked: Path) -> None:
    before = names(linked)
    for name, target in (
        ("itself", "."),
        ("above", "../.."),
        ("own_again", "../own"),
        ("to_folder_again", "../else"),
        ("gone", "nowhere"),
        ("gone.png", "nowhere.png"),
        ("one.png", "two.png"),
        ("two.png", "one.png"),
        ("one", "two"),
        ("two", "one"),
    ):
        (linked / name).symlink_to(target)
    (linked.parent / "else" / "back").symlink_to("../own")
    own = source(linked)
    assert names(linked) == before
    reasons = {reason.partition(" (")[0]: count for reason, count in own.passed_over.items()}
    assert reasons["a link that leads nowhere"] == 6
    assert reasons["a link to a folder that is read already"] == 4
    assert reasons["a link to a folder above this one"] == 1
    assert len(own.fingerprint()) == 32


def test_a_scan_of_folders_that_link_to_each_other_ends(tmp_path: Path) -> None:
    for one in range(12):  # there are 12! paths through them
        image(tmp_path / str(one) / "a.png")
        for other in range(12):
            (tmp_path / str(one) / f"to{other}").symlink_to(f"../{other}")
    assert len(source(tmp_path)) == 12


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_folder_that_cannot_be_read_is_counted(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    image(tmp_path / "closed" / "b.png").parent.chmod(0)
    try:
        (reason,) = source(tmp_path).passed_over
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert "cannot be read: Permission denied" in reason


def test_every_hard_link_is_a_separate_image(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    (tmp_path / "in").mkdir()
    for name, text in (("b", "a cat"), ("in/c", "a dog")):
        os.link(tmp_path / "a.png", tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(text)
    os.link(tmp_path / "b.txt", tmp_path / "a.txt")
    own = source(tmp_path)
    found = {key: fields.get("caption") for key, _, fields in map(own.read, range(len(own)))}
    assert found == {"a.png": "a cat", "b.png": "a cat", "in/c.png": "a dog"}


def test_a_file_that_disappears_is_a_bad_record(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    own = source(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(OSError, match=r"a\.png"):
        own.read(0)
    assert len(own.fingerprint()) == 32


def test_the_error_for_a_folder_without_images_lists_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"no image in .*; 1 x an image of a kind .* \.heic"):
        source(tmp_path)
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(UsageError, match=r"to read its tar shards, give .*/\*\.tar"):
        source(tmp_path)
