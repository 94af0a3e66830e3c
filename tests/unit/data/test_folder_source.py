"""Folders of images with captions in text files."""

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


def test_images_and_captions_in_the_order_of_their_paths(tmp_path: Path) -> None:
    write(tmp_path, "b.PNG", "a dog\n")
    write(tmp_path, "a.jpg")
    write(tmp_path, "deep/c.webp", "a cat")
    (tmp_path / "notes.md").write_text("no image")
    (tmp_path / "._b.png").write_text("what some systems leave")
    own = source(tmp_path)
    records = [own.read(position) for position in range(len(own))]
    assert [key for key, _, _ in records] == ["a.jpg", "b.PNG", "deep/c.webp"]
    assert [fields for _, _, fields in records] == [{}, {"caption": "a dog"}, {"caption": "a cat"}]
    assert records[1][1] == {"image": (tmp_path / "b.PNG").read_bytes()}
    assert source(tmp_path, "my dog").read(0)[2] == {"caption": "my dog"}


def test_a_changed_image_changes_the_fingerprint(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    before = source(tmp_path).fingerprint()
    assert source(tmp_path).fingerprint() == before
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    assert source(tmp_path).fingerprint() != before


def test_a_missing_or_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no image in"):
        source(tmp_path)
    with pytest.raises(UsageError, match="no such folder of images"):
        source(tmp_path / "nowhere")


def test_text_that_cannot_be_read_is_a_bad_record(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    for text in (b"[1]", b"{", b"[" * 100_000):
        (tmp_path / "a.json").write_bytes(text)
        with pytest.raises(ValueError, match=r".+"):
            source(tmp_path).read(0)


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("a dog", encoding="utf-8-sig")
    (tmp_path / "a.json").write_text('{"id": 1}', encoding="utf-8-sig")
    assert source(tmp_path).read(0)[2] == {"id": 1, "caption": "a dog"}
