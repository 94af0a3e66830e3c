"""Special files never hang a run: pipes, sockets, devices, huge files, dangling links."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from blip3o.cli import main
from blip3o.data.cache import FeatureCache, build_cache
from blip3o.data.sources.folder import FolderConfig
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.data.walk import source_config

PX = 8


def pipe(file: Path) -> None:
    os.mkfifo(file)


def unix_socket(file: Path) -> None:
    here = Path.cwd()
    os.chdir(file.parent)  # the full path may be too long for a socket
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(file.name)
    finally:
        os.chdir(here)


def huge(file: Path) -> None:
    with file.open("wb") as made:
        made.truncate(3 << 30)


def device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def terminal(file: Path) -> None:
    file.symlink_to("/dev/tty" if Path("/dev/tty").exists() else "/dev/null")


ODD_FILES = [pipe, unix_socket, huge, device, terminal]
Make = Callable[[Path], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two good images."""
    base = tmp_path / "own"
    base.mkdir()
    for name in ("a", "z"):
        Image.linear_gradient("L").resize((PX, PX)).save(base / f"{name}.png")
        (base / f"{name}.txt").write_text("a cat")
    return base


@pytest.mark.parametrize("make", ODD_FILES)
@pytest.mark.parametrize("name", ["m.png", "a.txt", "a.json", "z.png.caption"])
def test_an_odd_file_in_a_folder_is_a_bad_record(
    folder: Path, tmp_path: Path, make: Make, name: str
) -> None:
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    source = FolderConfig(path=str(folder), name="own").build()
    bad = source._names.index("m.png" if name == "m.png" else f"{name[0]}.png")
    for position in range(len(source)):
        if position != bad:
            source.read(position)
    with pytest.raises(ValueError, match=r"not an ordinary file|too large"):
        source.read(bad)
    assert main(["data", "lint", str(folder), "--jobs", "1"]) == 1
    assert main(["data", "stats", str(folder), "--jobs", "1"]) == 0
    out = tmp_path / "out"
    assert main(["data", "pack", str(folder), "--out", str(out), "--jobs", "1"]) == 0
    (notes,) = out.glob("*.skipped.jsonl")
    assert len(notes.read_text(encoding="utf-8").splitlines()) == 1


@pytest.mark.parametrize("make", ODD_FILES)
@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_list_of_captions_that_is_not_a_regular_file_is_refused(
    folder: Path, make: Make, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make(folder / name)
    assert main(["data", "lint", str(folder), "--jobs", "1"]) == 2
    assert "cannot read the captions in" in capsys.readouterr().err


@pytest.mark.parametrize("make", ODD_FILES)
def test_an_odd_file_that_a_list_names_is_a_bad_record(folder: Path, make: Make) -> None:
    make(folder / "odd.png")
    names = ["a.png", "odd.png", "./odd.png", str(folder / "odd.png"), "/dev/zero", "/dev/stdin"]
    rows = [{"image": name, "caption": "x"} for name in names]
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = JsonlConfig(path=f"{folder}/d.jsonl", name="d").build()
    source.read(0)
    for position in range(1, len(names)):
        with pytest.raises((ValueError, OSError), match=r"not an ordinary file|too large|no such"):
            source.read(position)


def test_a_folder_named_like_an_image_is_a_folder(folder: Path) -> None:
    (folder / "x.png").mkdir()
    (folder / "a.png").rename(folder / "x.png" / "a.png")
    source = FolderConfig(path=str(folder), name="own").build()
    assert [source.read(k)[0] for k in range(len(source))] == ["x.png/a.png", "z.png"]


@pytest.mark.parametrize("target", ["nowhere.png", "m.png", "../own/m.png", "a.png/b.png"])
def test_links_to_nowhere_stop_neither_cache_nor_packing(
    folder: Path, tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "m.png").symlink_to(target)
    (folder / "loop").symlink_to(".")
    source = FolderConfig(path=str(folder), name="own").build()
    assert len(source) == 2

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((2, 3))[:, None]

    build_cache(FeatureCache(f"{tmp_path}/cache", "f"), source, "image", encode, image_px=PX)
    out = tmp_path / "out"
    assert main(["data", "pack", str(folder), "--out", str(out), "--jobs", "1"]) == 0
    shown = capsys.readouterr().out
    assert "2 of 2 records packed" in shown
    assert "passed over: a link that leads nowhere (m.png)" in shown
    assert main(["data", "lint", str(folder), "--min-px", "1", "--jobs", "1"]) == 0
    assert "passed over: own: a link that leads nowhere (m.png)" in capsys.readouterr().out


def test_a_link_in_a_list_that_leads_nowhere_is_a_bad_record(folder: Path) -> None:
    (folder / "m.png").symlink_to("nowhere.png")
    (folder / "d.jsonl").write_text('{"image": "m.png", "caption": "x"}')
    with pytest.raises(OSError, match=r"m\.png"):
        source_config(f"{folder}/d.jsonl").build().read(0)
