"""Folders of pictures with captions beside them."""

from pathlib import Path

import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.data.sources.folder import FolderConfig, FolderSource


def write(folder: Path, name: str, caption: str | None = None) -> None:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(file)
    if caption is not None:
        file.with_suffix(".txt").write_text(caption)


def source(folder: Path, caption: str | None = None) -> FolderSource:
    return FolderConfig(path=str(folder), name="own", caption=caption).build()


def test_pictures_and_captions_in_the_order_of_their_paths(tmp_path: Path) -> None:
    write(tmp_path, "b.PNG", "a dog\n")
    write(tmp_path, "a.jpg")
    write(tmp_path, "deep/c.webp", "a cat")
    (tmp_path / "notes.md").write_text("no picture")
    (tmp_path / "._b.png").write_text("what some systems leave")
    own = source(tmp_path)
    records = [own.read(position) for position in range(len(own))]
    assert [key for key, _, _ in records] == ["a.jpg", "b.PNG", "deep/c.webp"]
    assert [fields for _, _, fields in records] == [{}, {"caption": "a dog"}, {"caption": "a cat"}]
    assert records[1][1] == {"image": (tmp_path / "b.PNG").read_bytes()}
    assert source(tmp_path, "my dog").read(0)[2] == {"caption": "my dog"}


def test_a_changed_picture_changes_the_fingerprint(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    before = source(tmp_path).fingerprint()
    assert source(tmp_path).fingerprint() == before
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    assert source(tmp_path).fingerprint() != before


def test_a_missing_or_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no picture in"):
        source(tmp_path)
    with pytest.raises(UsageError, match="no such folder of pictures"):
        source(tmp_path / "nowhere")
