import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Found, Item, Sample
from blip3o.eval.geneval.layout import GenEvalLayout
from blip3o.eval.geneval.prompts import item_of_metadata, read_prompts

LINES = read_prompts().lines


def items(number: int = 3, num_samples: int = 2) -> list[Item]:
    found = []
    for place, line in enumerate(LINES[:number]):
        item = item_of_metadata(line, place)
        found.append(
            Item(
                id=item.id,
                number=item.number,
                prompt=item.prompt,
                category=item.category,
                num_samples=num_samples,
                data=item.data,
            )
        )
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of each of three prompts."""
    layout, folder = GenEvalLayout(), tmp_path / "out"
    folder.mkdir()
    for item in items():
        layout.write(folder, [sample(item, number) for number in range(2)])
    return folder


def sample(item: Item, number: int) -> Sample:
    image = Image.new("RGB", (4, 3), (item.number, number, 7))
    return Sample(item=item, number=number, sha256="", image=image)


def read(folder: Path, some: list[Item] | None = None) -> list[Found]:
    return list(GenEvalLayout().read(folder, some or items()))


def test_written_images_are_read_back(folder: Path) -> None:
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    assert names[:3] == [
        "00000/metadata.jsonl",
        "00000/samples/00000.png",
        "00000/samples/00001.png",
    ]
    assert (folder / "00002/metadata.jsonl").read_text(encoding="utf-8") == json.dumps(LINES[2])
    found = read(folder)
    assert [(one.item, one.number) for one in found] == [
        (item.id, number) for item in items() for number in range(2)
    ]
    for one in found:
        assert (one.tile, one.tile_px) == (None, None)
        with Image.open(one.file) as image:
            assert image.size == (4, 3)
            assert image.getpixel((0, 0)) == (int(one.item), one.number, 7)


def test_the_metadata_select_the_prompt(folder: Path) -> None:
    (folder / "00001").rename(folder / "777")
    assert {one.item for one in read(folder)} == {"00000", "00001", "00002"}


def test_missing_prompts_and_images_are_left_to_the_report(folder: Path) -> None:
    (folder / "00001/samples/00000.png").unlink()
    found = read(folder, items(number=5))
    assert [(one.item, one.number) for one in found if one.item == "00001"] == [("00001", 1)]
    assert len(found) == 5


def test_numbers_from_one_give_the_order(folder: Path) -> None:
    samples = folder / "00001/samples"
    (samples / "00000.png").rename(samples / "00002.png")
    found = [one for one in read(folder) if one.item == "00001"]
    assert [(one.number, one.file.name) for one in found] == [(0, "00001.png"), (1, "00002.png")]


def test_prompts_that_the_settings_leave_out_are_passed_over(folder: Path) -> None:
    first, *others = items()
    found = list(GenEvalLayout(others).read(folder, [first]))
    assert [one.item for one in found] == ["00000", "00000"]
    with pytest.raises(UsageError, match="it has no prompt"):
        read(folder, [first])


def test_files_that_are_no_images_are_passed_over(folder: Path) -> None:
    for name in ("readme.txt", ".00002.png.part", "._00000.png"):
        (folder / "00001/samples" / name).write_text("x")
    (folder / "00001/grid.png").write_text("x")
    (folder / "log").mkdir()
    assert len(read(folder)) == 6


@pytest.mark.parametrize("name", ["run_1", "-1", "1.5"])
def test_folders_that_are_not_numbers_are_passed_over(folder: Path, name: str) -> None:
    (folder / "00001").rename(folder / name)
    assert {one.item for one in read(folder)} == {"00000", "00002"}


def edited(change: Callable[[dict[str, object]], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        file = folder / "00001/metadata.jsonl"
        metadata = json.loads(file.read_text(encoding="utf-8"))
        change(metadata)
        file.write_text(json.dumps(metadata), encoding="utf-8")

    return edit


def image(name: str) -> Callable[[Path], object]:
    def add(folder: Path) -> None:
        Image.new("RGB", (2, 2)).save(folder / "00001/samples" / name, format="PNG")

    return add


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (image("00002.png"), "holds 3 images and not 2: .* images_per_prompt=3"),
        (image("0001.png.part"), "would score .*0001.png.part"),
        (image("3.pngx"), "would score .*3.pngx"),
        (image("3.jpg"), "would pass over .*3.jpg"),
        (image("3.PNG"), "would pass over .*3.PNG"),
        (image("a3.png"), "would pass over .*a3.png"),
        (lambda folder: (folder / "00001/metadata.jsonl").unlink(), "metadata.jsonl is missing"),
        (
            lambda folder: (folder / "00001/samples").rename(folder / "00001/images"),
            "samples is missing",
        ),
        (
            lambda folder: (folder / "00001/metadata.jsonl").write_text(
                "\n".join(json.dumps(line) for line in LINES[:2])
            ),
            "exactly one JSON object",
        ),
        (lambda folder: (folder / "00001/metadata.jsonl").write_text("[1]"), "one JSON object"),
        (
            edited(lambda line: line.update(include=[{"class": "cow", "count": 2}])),
            "include differ from those of 00001",
        ),
        (edited(lambda line: line.update(tag="colors")), "tag differ from those of 00001"),
        (
            edited(lambda line: line.update(prompt="one brown cow")),
            "the prompt is 'one brown cow' and not 'a photo of a cow'; rewritten",
        ),
        (
            edited(lambda line: line.update(prompt="x", include=[])),
            "it has no prompt 'x'",
        ),
        (
            lambda folder: (folder / "00001/metadata.jsonl").write_text(json.dumps(LINES[0])),
            "hold the same prompt",
        ),
    ],
)
def test_folders_that_the_program_reads_wrongly_are_refused(
    folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(folder)
    with pytest.raises(UsageError, match=message):
        read(folder)


def test_two_images_of_one_number_are_refused(folder: Path) -> None:
    image("1.png")(folder)
    with pytest.raises(UsageError, match="two images of the number 1"):
        read(folder, items(num_samples=4))


@pytest.mark.parametrize("name", ["", "absent"])
def test_a_folder_of_another_form_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "00001.png").write_text("x")
    with pytest.raises(UsageError, match=r"no folder such as 00000/samples|cannot read"):
        read(tmp_path / name)


def test_further_keys_are_said(folder: Path) -> None:
    assert GenEvalLayout().notes(folder, items()) == []
    edited(lambda line: line.update(detailed_caption="a long text"))(folder)
    assert len(read(folder)) == 6
    (note,) = GenEvalLayout().notes(folder, items())
    assert "further keys (detailed_caption)" in note
