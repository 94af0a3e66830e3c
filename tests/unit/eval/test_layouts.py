"""Folders with one file for each item, and input images that a file names."""

from pathlib import Path

import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Item, Sample
from blip3o.eval.layouts import FlatLayout
from blip3o.eval.prompt_files import source_file


def test_source_files_stay_in_their_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    assert source_file(tmp_path, "a.png", "x") == tmp_path / "a.png"
    for name in ("../a.png", "/etc/passwd", "b.png", "", None):
        with pytest.raises(UsageError, match="x"):
            source_file(tmp_path, name, "x")


def drawn(key: str) -> Sample:
    image = Image.new("RGB", (4, 4), (int(key), 2, 3))
    return Sample(item=Item(id=key, number=0), number=0, sha256="", image=image)


def test_the_flat_layout_is_written_and_read(tmp_path: Path) -> None:
    layout, samples = FlatLayout(), [drawn("1"), drawn("20")]
    for one in samples:
        layout.write(tmp_path, [one])
    assert sorted(one.name for one in tmp_path.iterdir()) == ["1.png", "20.png"]
    items = [one.item for one in samples] + [Item(id="3", number=0)]
    found = {one.item: one for one in layout.read(tmp_path, items)}
    assert set(found) == {"1", "20"}  # the third one is missing
    for one in samples:
        assert one.image is not None
        with Image.open(found[one.item.id].file) as image:
            assert image.tobytes() == one.image.tobytes()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("0001.png", "save it as 1.png"),
        ("1.jpg", "save it as 1.png"),
        ("2.png.part", "they are named 1.png"),
        ("1.txt", "they are named 1.png"),
    ],
)
def test_files_that_the_official_programs_do_not_read_are_refused(
    tmp_path: Path, name: str, remedy: str
) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match=remedy):
        list(FlatLayout().read(tmp_path, [drawn("1").item]))
    with pytest.raises(UsageError, match="no such folder"):
        list(FlatLayout().read(tmp_path / "none", [drawn("1").item]))
