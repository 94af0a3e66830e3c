"""Image references of a row: one, several or in messages; as path, address or bytes."""

import base64
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from blip3o.data.sources.jsonl import JsonlConfig, JsonlSource
from blip3o.data.sources.references import image_role

_TEXTS = ("value", "content")
PIXELS = b"\xfb\xff\xbfPNG"  # its base64 has both characters that differ between the alphabets


def of(folder: Path, *rows: dict[str, Any], **settings: Any) -> JsonlSource:
    folder.mkdir(exist_ok=True)
    file = folder / "d.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return JsonlConfig(path=str(file), name="d", **settings).build()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with a few files."""
    for name in (
        "a.png",
        "b.png",
        "in/c.png",
        "in/with space#1.png",
        "caf\u00e9.png",
        "100%25.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("a.png", "a.png"),
        ("./a.png", "a.png"),
        ("in/../a.png", "a.png"),
        (" a.png", "a.png"),
        ("a.png\n", "a.png"),
        ("in\\c.png", "in/c.png"),
        (".\\in\\c.png", "in/c.png"),
        ("in/with%20space%231.png", "in/with space#1.png"),
        ("100%25.png", "100%25.png"),
        (unicodedata.normalize("NFD", "caf\u00e9.png"), "caf\u00e9.png"),
        ("{base}/a.png", "a.png"),
        ("file://{base}/a.png", "a.png"),
        ("file://localhost{base}/in/with%20space%231.png", "in/with space#1.png"),
        ("FILE://{base}/a.png", "a.png"),
    ],
)
def test_a_path_is_read_as_it_is_meant(base: Path, reference: str, name: str) -> None:
    reference = reference.replace("{base}", str(base))
    assert of(base, {"image": reference}).read(0)[1] == {"image": name.encode()}


def test_the_literal_path_takes_precedence(base: Path) -> None:
    for name in (" a.png", "in\\c.png", "in%2Fc.png"):
        (base / name).write_bytes(b"literal")
        assert of(base, {"image": name}).read(0)[1] == {"image": b"literal"}


ENCODED = base64.b64encode(PIXELS).decode()


@pytest.mark.parametrize(
    "reference",
    [
        f"data:image/png;base64,{ENCODED}",
        f"DATA:image/png;charset=x;BASE64,{ENCODED}",
        f"data:;base64,{ENCODED[:4]}\r\n {ENCODED[4:]}",
        f"data:image/png;base64,{ENCODED.rstrip('=').replace('+', '-').replace('/', '_')}",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in PIXELS),
        {"bytes": ENCODED, "path": "gone.png"},
        {"url": f"data:image/png;base64,{ENCODED}"},
        {"type": "base64", "media_type": "image/png", "data": ENCODED},
    ],
)
def test_an_image_may_be_in_the_list_itself(base: Path, reference: Any) -> None:
    assert of(base, {"image": reference}).read(0)[1] == {"image": PIXELS}


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"image": ["a.png"]}, ["a.png"]),
        ({"image": ["a.png", "b.png", "a.png"]}, ["a.png", "b.png", "a.png"]),
        ({"images": ["a.png", "b.png"]}, ["a.png", "b.png"]),
        ({"images": "a.png"}, ["a.png"]),
        ({"image": "a.png", "images": ["a.png"]}, ["a.png"]),
        ({"image": None, "images": ["a.png"]}, ["a.png"]),
        ({"image": {"path": "a.png", "bytes": None}}, ["a.png"]),
        ({"images": [{"path": "a.png"}, {"url": "b.png"}]}, ["a.png", "b.png"]),
        ({"file_name": "a.png"}, ["a.png"]),
        ({"image_path": "a.png"}, ["a.png"]),
        ({"img_path": "a.png"}, ["a.png"]),
        ({"image": "a.png", "file_name": "gone.png"}, ["a.png"]),
        ({"image_file": "a.png"}, ["a.png"]),
        ({"image_name": "a.png"}, ["a.png"]),
        ({"filename": "a.png"}, ["a.png"]),
        ({"img": "a.png"}, ["a.png"]),
        ({"image_url": "a.png"}, ["a.png"]),
        ({"image": ["a.png", None]}, ["a.png"]),
        ({"images": [None, "b.png", ""]}, ["b.png"]),
        ({"image": [["a.png"], "b.png"]}, ["a.png", "b.png"]),
        *(({"image": nothing}, []) for nothing in (None, "", [], [None], {"path": None})),
        ({"image": {"width": 3}}, []),
        ({"image": 5}, []),
        ({"file_name": "notes.txt"}, []),
    ],
)
def test_fields_that_name_images(base: Path, row: dict[str, Any], names: list[str]) -> None:
    files = of(base, row).read(0)[1]
    assert list(files) == [image_role(k) for k in range(len(names))]
    assert list(files.values()) == [name.encode() for name in names]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "b.png", "detail": "low"}},
        {"type": "image_url", "image_url": "b.png"},
        {"type": "image", "image": "b.png"},
        {"type": "image", "path": "b.png"},
        {"type": "image", "url": "b.png"},
        {"type": "input_image", "image_url": "b.png"},
        {"type": "image", "image": {"path": "b.png"}},
    ],
)
def test_images_in_messages_are_read_in_order(base: Path, part: dict[str, Any]) -> None:
    first = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{ENCODED}"}}
    text = {"type": "text", "text": "Which?"}
    talk = [{"role": "user", "content": [first, part, text]}, {"role": "assistant", "content": "b"}]
    for name in ("messages", "conversations"):
        _, files, fields = of(base, {name: talk}).read(0)
        assert list(files.items()) == [("image", PIXELS), ("image_2", b"b.png")]
        assert fields[name][0]["content"] == [{"type": "image"}, {"type": "image"}, text]


@pytest.mark.parametrize(
    ("row", "words", "names"),
    [
        ({}, "Image 1: <img>a.png</img>\nWhat?", ["a.png"]),
        ({}, "<img> a.png </img><img>in/c.png</img>Which?", ["a.png", "in/c.png"]),
        ({"image": "b.png"}, "Is <img>a.png</img> HTML?", ["b.png"]),
        ({}, "Is <img>x</img> HTML?", []),
        ({}, "Is <img src='a.png'> HTML?", []),
    ],
)
def test_images_in_the_text_of_a_turn_are_read_where_the_row_has_no_others(
    base: Path, row: dict[str, Any], words: str, names: list[str]
) -> None:
    for turn in ({"from": "user", "value": words}, {"role": "user", "content": words}):
        _, files, fields = of(base, {**row, "conversations": [turn]}).read(0)
        assert list(files.values()) == [name.encode() for name in names]
        text = next(text for key, text in fields["conversations"][0].items() if key in _TEXTS)
        assert text.count("<image>") == len(names) * (not row)
        assert ("<img>" in text) == ("<img>" in words and text == words)


def test_an_edit_is_not_about_a_further_file_that_it_names(base: Path) -> None:
    row = {"source": "a.png", "target": "b.png", "instruction": "x", "filename": "gone.png"}
    assert list(of(base, row).read(0)[1]) == ["source", "target"]


def test_the_key_of_a_record_without_an_id_is_its_number(base: Path) -> None:
    own = of(base, {"id": None, "caption": "x"}, {"caption": "x"}, {"id": 0})
    assert [own.read(k)[0] for k in range(3)] == ["0", "1", "0"]


def test_parts_without_a_name_stand_for_the_rows_images(base: Path) -> None:
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    assert list(of(base, {"messages": talk, "images": ["a.png"]}).read(0)[1]) == ["image"]


def test_edits_and_data_sets_called_source(base: Path) -> None:
    edit = {"source": "a.png", "target": ["b.png"], "instruction": "x"}
    assert list(of(base, edit).read(0)[1]) == ["source", "target"]
    for row in (
        {"image": "a.png", "source": "coco"},
        {"image": "a.png", "source": "imagenet", "target": "cat"},
        {"image": "a.png", "source": "coco.png"},
        {"image": "a.png", "source": None, "target": None},
    ):
        _, files, fields = of(base, row).read(0)
        assert list(files) == ["image"]
        assert fields["source"] == row["source"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"image": "gone.png"}, "no such image: 'gone.png' in "),
        ({"image": "."}, "is a folder"),
        ({"image": "/dev/zero"}, "not an ordinary file"),
        ({"image": ["/dev/zero"]}, "not an ordinary file"),
        ({"image": {"path": "/dev/zero"}}, "not an ordinary file"),
        ({"image": "file:///dev/zero"}, "not an ordinary file"),
        ({"image": "https://example.com/a.png"}, "is an address; download it"),
        ({"image": "s3://bucket/a.png"}, "is an address; download it"),
        ({"image": "a\0.png"}, "no such image"),
        ({"image": "a" * 5000}, "no such image"),
        ({"image": "data:image/png;base64,@@@"}, "damaged"),
        ({"image": {"bytes": "\u0089PNG"}}, "an image in base64 is damaged"),
        ({"image_url": "https://example.com/a.png"}, "is an address; download it"),
        ({"image": "data:image/png"}, "without a comma"),
        ({"image": "a.png", "images": ["b.png"]}, "different images"),
        ({"source": ["a.png", "b.png"], "target": "a.png"}, "several images"),
        (
            {"image": "a.png", "messages": [{"content": [{"type": "image", "image": "a.png"}]}]},
            "both in a field and in its messages",
        ),
    ],
)
def test_an_unreadable_image_makes_a_bad_record(
    base: Path, row: dict[str, Any], expected: str
) -> None:
    with pytest.raises((ValueError, OSError), match=expected):
        of(base, row).read(0)


def test_paths_may_start_elsewhere(base: Path, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    assert of(lists, {"image": "a.png"}, image_folder=str(base)).read(0)[1] == {"image": b"a.png"}
    assert of(lists, {"image": "c.png"}, image_folder=f"{base}/in/").read(0)[1]
