"""The terminal chat: names of image files, and answers to commands."""

import io
from pathlib import Path

import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.generate.chat import converse, image_paths
from blip3o.generate.pipeline import Blip3oPipeline

NAMES = ["a.png", "a b.png", "it's.png", "x\u00e9 (1).png", "c%20d.png", "#1.png", 'q".png']


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in NAMES:
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a.png", ["a.png"]),
        ("a b.png", ["a b.png"]),  # without quotes
        ('"a b.png"', ["a b.png"]),
        ("'a b.png'", ["a b.png"]),
        ("a\\ b.png", ["a b.png"]),
        ("  a.png  ", ["a.png"]),
        ("it's.png", ["it's.png"]),
        ("'it'\\''s.png'", ["it's.png"]),
        ("it\\'s.png", ["it's.png"]),
        ("x\u00e9\\ \\(1\\).png", ["x\u00e9 (1).png"]),
        ("c%20d.png", ["c%20d.png"]),
        ("#1.png", ["#1.png"]),
        ("'q\".png'", ['q".png']),
        ("a.png 'a b.png'", ["a.png", "a b.png"]),
        ('a.png a\\ b.png "#1.png" a.png', ["a.png", "a b.png", "#1.png", "a.png"]),
    ],
)
def test_files_are_named_as_in_a_shell(text: str, names: list[str]) -> None:
    assert image_paths(text) == names


@pytest.mark.parametrize("name", NAMES)
def test_a_dragged_file_is_found(tmp_path: Path, name: str) -> None:
    url = (tmp_path / name).as_uri()
    for text in (url, f"'{url}'" if "'" not in url else url, url.replace("///", "//localhost/")):
        assert image_paths(text) == [str(tmp_path / name)]
    assert image_paths(f"{url} a.png") == [str(tmp_path / name), "a.png"]


def test_a_name_may_begin_with_the_home_folder(tmp_path: Path) -> None:
    for text in ("~/a.png", "'~/a.png'"):
        assert image_paths(text) == [f"{tmp_path}/a.png"]
    for text in ("~/a b.png", "~/a\\ b.png", '"~/a b.png"'):
        assert image_paths(text) == [f"{tmp_path}/a b.png"]


def test_a_missing_name_and_an_open_quote_are_refused() -> None:
    with pytest.raises(UsageError, match="no file: give its name"):
        image_paths("  ")
    with pytest.raises(UsageError, match="no such image: 'x y"):
        image_paths("'x y")


def test_a_single_image_is_reported_as_one_image(tiny_pipe: Blip3oPipeline) -> None:
    out = io.StringIO()
    converse(tiny_pipe, io.StringIO("/image a.png\n/quit\n"), out)
    assert "> (1 image added)\n" in out.getvalue()


def test_several_images_are_added_all_or_none(tiny_pipe: Blip3oPipeline) -> None:
    lines = ["/image a.png none.png", "/image a.png 'a b.png'", "/images a.png", "/image", "/quit"]
    out = io.StringIO()
    converse(tiny_pipe, io.StringIO("\n".join(lines)), out)
    said = out.getvalue()
    assert said.count("added)") == 1
    assert "(2 images added)" in said
    assert "(no such image: none.png)" in said
    assert "unknown command /images" in said
    assert "(no file: give its name, /image FILE)" in said
