"""Folders of grids: what is written is read, and a grid of another size is refused."""

import dataclasses
from pathlib import Path

import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Found, Item, Sample
from blip3o.eval.grids import GridLayout

PX = 4
COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))
ITEMS = [Item(id=name, number=k, num_samples=4) for k, name in enumerate(("cat1", "dog2"))]
GRID = GridLayout(columns=2, rows=2, tile_px=PX)


def samples(item: Item, px: int = PX) -> list[Sample]:
    return [
        Sample(item=item, number=k, sha256="", image=Image.new("RGB", (px, px), COLORS[k]))
        for k in range(item.num_samples)
    ]


def cut(found: Found) -> Image.Image:
    assert found.tile is not None
    column, row, columns, rows = found.tile
    image = Image.open(found.file)
    assert image.size == (columns * PX, rows * PX)
    return image.crop((column * PX, row * PX, (column + 1) * PX, (row + 1) * PX))


def write_all(folder: Path, px: int = PX) -> None:
    for item in ITEMS:
        dataclasses.replace(GRID, tile_px=px).write(folder, samples(item, px))


def test_written_grids_are_read_in_the_same_order(tmp_path: Path) -> None:
    write_all(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat1.png", "dog2.png"]
    found = list(GRID.read(tmp_path, ITEMS))
    assert [(one.item, one.number) for one in found] == [
        (item.id, number) for item in ITEMS for number in range(4)
    ]
    assert [cut(one).getpixel((0, 0)) for one in found] == [*COLORS, *COLORS]
    assert {one.tile_px for one in found} == {PX}


def test_upper_right_precedes_lower_left(tmp_path: Path) -> None:
    write_all(tmp_path)
    image = Image.open(tmp_path / "cat1.png")
    assert image.getpixel((PX, 0)) == COLORS[1]
    assert image.getpixel((0, PX)) == COLORS[2]


def test_three_samples_leave_a_black_tile(tmp_path: Path) -> None:
    item = Item(id="cat1", number=0, num_samples=3)
    GRID.write(tmp_path, samples(item))
    assert Image.open(tmp_path / "cat1.png").getpixel((PX, PX)) == (0, 0, 0)
    assert [one.number for one in GRID.read(tmp_path, [item])] == [0, 1, 2]


def test_a_grid_that_would_be_cut_within_its_first_image_is_refused(tmp_path: Path) -> None:
    write_all(tmp_path, px=2 * PX)  # the public mis-measurement: grids of 1024, cut at 512
    with pytest.raises(UsageError, match="parts of the first image as all images") as error:
        list(GRID.read(tmp_path, ITEMS))
    assert f"resolution={2 * PX} if each file is a grid" in str(error.value)
    assert "16 x 16" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_grid_that_would_leave_black_tiles_is_refused(tmp_path: Path) -> None:
    write_all(tmp_path, px=PX // 2)
    with pytest.raises(UsageError, match="black areas in place of images"):
        list(GRID.read(tmp_path, ITEMS))


def test_one_wrong_file_among_right_ones_is_named(tmp_path: Path) -> None:
    write_all(tmp_path)
    Image.new("RGB", (2 * PX, 3 * PX)).save(tmp_path / "dog2.png")
    with pytest.raises(UsageError, match=r"1 files .* dog2\.png is 8 x 12"):
        list(GRID.read(tmp_path, ITEMS))


def test_the_side_of_a_tile_must_be_known(tmp_path: Path) -> None:
    write_all(tmp_path)
    with pytest.raises(UsageError, match="resolution=PIXELS"):
        list(dataclasses.replace(GRID, tile_px=None).read(tmp_path, ITEMS))


def test_a_single_image_is_no_tile(tmp_path: Path) -> None:
    item = Item(id="cat1", number=0)
    layout = GridLayout(columns=1, rows=1, tile_px=None)
    layout.write(tmp_path, samples(item))
    (found,) = layout.read(tmp_path, [item])
    assert found.tile is None


def test_other_files_missing_items_and_broken_files_are_listed(
    tmp_path: Path,
) -> None:
    write_all(tmp_path)
    (tmp_path / "dpg_results.txt").write_text("79.36")
    (tmp_path / "zebra.png").write_bytes(b"")
    (tmp_path / "dog2.png").write_bytes(b"\x89PNG\r\n")
    items = [*ITEMS, Item(id="cow3", number=2, num_samples=4)]
    survey = GRID.survey(tmp_path, items)
    assert list(survey.unknown) == ["dpg_results.txt", "zebra.png"]
    assert list(survey.missing) == ["cow3"]
    assert list(survey.broken) == ["dog2.png"]
    assert len(list(GRID.read(tmp_path, items))) == 8
    notes = GRID.notes(tmp_path, items)
    for note, name in zip(notes, ("cow3", "dpg_results.txt", "dog2.png"), strict=True):
        assert name in note


def test_the_key_ends_at_the_first_dot_and_two_files_of_an_item_are_refused(tmp_path: Path) -> None:
    write_all(tmp_path)
    (tmp_path / "cat1.png").rename(tmp_path / "cat1.v2.png")
    assert len(list(GRID.read(tmp_path, ITEMS))) == 8
    GRID.write(tmp_path, samples(ITEMS[0]))
    with pytest.raises(UsageError, match=r"cat1\.png, cat1\.v2\.png"):
        list(GRID.read(tmp_path, ITEMS))


def test_a_folder_without_items_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat-1.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"no file with the name of an item: it holds cat-1\.png"):
        list(GRID.read(tmp_path, ITEMS))
    with pytest.raises(UsageError, match="not a folder"):
        list(GRID.read(tmp_path / "absent", ITEMS))


def test_a_grid_is_written_only_from_all_samples_of_one_size(tmp_path: Path) -> None:
    some = samples(ITEMS[0])
    with pytest.raises(UsageError, match="3 of 4 images"):
        GRID.write(tmp_path, some[:3])
    with pytest.raises(UsageError, match="is 2 x 2, but a tile of the grid is 4 x 4"):
        GRID.write(tmp_path, samples(ITEMS[0], px=2))
    assert not list(tmp_path.iterdir())
