"""Folders of images: names and metadata; an image depends only on its own numbers."""

import errno
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.core.rng import image_generator
from blip3o.generate.checks import read_prompts
from blip3o.generate.local import write_images
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.generate.write import (
    GeneratedImage,
    NumberedPrompt,
    save_image,
    write_generated,
    written_images,
)


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file)).astype(int)


def test_images_grid_and_metadata_are_written(tiny_pipe: Blip3oPipeline, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    grid = write_images(tiny_pipe, ["a cat", "a d\u00f6g"], folder, num_images=2, seed=3)
    assert grid == folder / "grid.png"
    names = ["0000-0.png", "0000-1.png", "0001-0.png", "0001-1.png"]
    assert sorted(p.name for p in folder.iterdir()) == [*names, "grid.png", "metadata.jsonl"]
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == names
    assert rows[3] == {
        "prompt": "a d\u00f6g",
        "seed": 3,
        "prompt_number": 1,
        "image_number": 1,
        "num_inference_steps": 3,
        "guidance_scale": 2.0,
        "file": "0001-1.png",
    }
    assert pixels(folder / names[0]).shape == (16, 16, 3)


def test_the_sheet_shows_no_more_images_than_fit_into_memory(
    tiny_pipe: Blip3oPipeline, tmp_path: Path
) -> None:
    for count, name in ((64, "a"), (70, "b")):
        write_images(tiny_pipe, ["a cat"], tmp_path / name, num_images=count, batch_size=70)
    assert len(list((tmp_path / "b").glob("0000-*.png"))) == 70
    assert pixels(tmp_path / "a/grid.png").shape == pixels(tmp_path / "b/grid.png").shape


def test_an_interrupted_run_leaves_no_metadata_of_images_that_are_gone(
    tiny_pipe: Blip3oPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tiny_pipe, ["a cat", "a dog"], tmp_path, seed=1)
    before = (tmp_path / "0001-0.png").read_bytes()
    calls = []
    call = type(tiny_pipe).__call__

    def interrupted(pipe: Blip3oPipeline, *inputs: Any, **settings: Any) -> Any:
        calls.append(1)
        if len(calls) in (1, 3):  # before the first new image, and after
            raise KeyboardInterrupt
        return call(pipe, *inputs, **settings)

    monkeypatch.setattr(type(tiny_pipe), "__call__", interrupted)
    for is_there in (True, False):
        with pytest.raises(KeyboardInterrupt):
            write_images(tiny_pipe, ["a cat", "a dog"], tmp_path, seed=2, batch_size=1)
        assert (tmp_path / "metadata.jsonl").exists() == is_there
        assert (tmp_path / "grid.png").exists() == is_there
    assert (tmp_path / "0001-0.png").read_bytes() == before


def test_an_image_does_not_depend_on_what_else_is_made(
    tiny_pipe: Blip3oPipeline, tmp_path: Path
) -> None:
    prompts = ["a cat", "a dog", "a car"]
    write_images(tiny_pipe, prompts, tmp_path / "a", num_images=2, batch_size=16)
    write_images(tiny_pipe, prompts, tmp_path / "b", num_images=3, batch_size=1)
    for name in ("0000-0.png", "0001-1.png", "0002-0.png"):
        difference = pixels(tmp_path / "a" / name) - pixels(tmp_path / "b" / name)
        assert abs(difference).max() <= 2  # rounding in batches of another size
    assert (pixels(tmp_path / "a/0000-0.png") != pixels(tmp_path / "a/0000-1.png")).any()
    write_images(tiny_pipe, prompts[:1], tmp_path / "c", seed=1)
    assert (pixels(tmp_path / "c/0000-0.png") != pixels(tmp_path / "a/0000-0.png")).any()


def test_an_image_can_be_made_again_from_its_metadata(
    tiny_pipe: Blip3oPipeline, tmp_path: Path
) -> None:
    write_images(tiny_pipe, ["a cat"], tmp_path, seed=4, num_inference_steps=2)
    row = json.loads((tmp_path / "metadata.jsonl").read_text())
    (image,) = tiny_pipe(
        row["prompt"],
        generator=image_generator(row["seed"], row["prompt_number"], row["image_number"]),
        num_inference_steps=row["num_inference_steps"],
        guidance_scale=row["guidance_scale"],
    ).images
    assert (np.asarray(image) == pixels(tmp_path / row["file"])).all()


@pytest.mark.parametrize("number", [0, -1, 1001])
def test_numbers_out_of_range_are_refused_before_a_folder_is_made(
    tiny_pipe: Blip3oPipeline, tmp_path: Path, number: int
) -> None:
    with pytest.raises(UsageError, match="the number of images must be 1 to 1000"):
        write_images(tiny_pipe, ["a cat"], tmp_path / "out", num_images=number)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_refused(tiny_pipe: Blip3oPipeline, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write to"):
        write_images(tiny_pipe, ["a cat"], tmp_path / "file" / "out")


@pytest.mark.parametrize("is_new", [True, False])
def test_an_error_before_the_first_image_leaves_no_new_folder(is_new: bool, tmp_path: Path) -> None:
    def refuse(batch: Sequence[NumberedPrompt]) -> list[GeneratedImage]:
        raise UsageError("no server")

    folder = tmp_path / "out"
    if not is_new:
        folder.mkdir()
    with pytest.raises(UsageError, match="no server"):
        write_generated(refuse, ["a cat"], folder, num_images=1, seed=0)
    assert folder.exists() != is_new


def test_prompts_are_the_lines_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("a cat\r\n\n  a d\u00f6g  \n".encode())
    assert read_prompts(file) == ["a cat", "a d\u00f6g"]
    file.write_text("a cat", encoding="utf-8-sig")  # as some editors write it
    assert read_prompts(file) == ["a cat"]
    file.write_text(" \n\n")
    with pytest.raises(UsageError, match="holds no prompt"):
        read_prompts(file)
    for bad in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(UsageError, match="cannot read prompts from"):
            read_prompts(bad)
    file.write_bytes(b"\xff\xff")
    with pytest.raises(UsageError, match="cannot read prompts from"):
        read_prompts(file)


@pytest.mark.parametrize("letter", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_a_line_of_prompts_ends_at_a_newline_only(tmp_path: Path, letter: str) -> None:
    file = tmp_path / "prompts.txt"
    for end in ("\n", "\r\n"):
        file.write_bytes(f"a cat{letter}two{end}a dog{end}a car".encode())
        assert read_prompts(file) == [f"a cat{letter}two", "a dog", "a car"]
    for encoding in ("utf-8-sig", "utf-16"):
        file.write_bytes(f"a cat{letter}two\r\na d\u00f6g\n".encode(encoding))
        assert read_prompts(file) == [f"a cat{letter}two", "a d\u00f6g"]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def images_of(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir() if one.name not in {"grid.png", "mine.txt"})


def test_a_smaller_call_leaves_none_of_the_images_before_it(
    tiny_pipe: Blip3oPipeline, tmp_path: Path
) -> None:
    write_images(tiny_pipe, ["a cat", "a dog", "a car"], tmp_path, num_images=2)
    for name in ("mine.txt", "0007-0.png", "x.png"):  # files of the user
        (tmp_path / name).write_text("mine")
    write_images(tiny_pipe, ["a bus"], tmp_path)
    assert images_of(tmp_path) == ["0000-0.png", "0007-0.png", "metadata.jsonl", "x.png"]
    assert [row["prompt"] for row in rows_of(tmp_path)] == ["a bus"]
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert written_images(tmp_path) == [tmp_path / "0000-0.png", tmp_path / "metadata.jsonl"]


def test_metadata_names_no_file_elsewhere_for_removal(
    tiny_pipe: Blip3oPipeline, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    names = ["../0001-0.png", "mine.txt", "sub/0001-0.png", str(tmp_path / "0002-0.png"), 3, None]
    lines = [json.dumps({"file": name}) for name in names]
    lines += ["not json", "[]", json.dumps({"prompt": "a"}), "5"]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    for path in (tmp_path / "0001-0.png", tmp_path / "0002-0.png", folder / "mine.txt"):
        path.write_text("mine")
    write_images(tiny_pipe, ["a bus"], folder)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["0001-0.png", "0002-0.png", "out"]
    assert (folder / "mine.txt").exists()


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4])
def test_a_killed_call_and_a_smaller_one_leave_no_image_of_another(
    tiny_pipe: Blip3oPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    write_images(tiny_pipe, ["a cat", "a dog", "a car"], tmp_path)
    saved = []

    def killed(image: Image.Image, path: Path) -> None:
        if len(saved) == at:
            raise KeyboardInterrupt
        saved.append(path)
        save_image(image, path)

    with monkeypatch.context() as patched:
        patched.setattr("blip3o.generate.write.save_image", killed)
        with pytest.raises(KeyboardInterrupt):
            write_images(tiny_pipe, ["a bus", "a hat", "a cup", "a bell"], tmp_path, batch_size=1)
    assert not (tmp_path / "metadata.jsonl").exists()
    write_images(tiny_pipe, ["a fish"], tmp_path)
    assert images_of(tmp_path) == ["0000-0.png", "metadata.jsonl"]
    assert [row["prompt"] for row in rows_of(tmp_path)] == ["a fish"]


def test_a_bad_prompt_at_the_end_costs_nothing(tiny_pipe: Blip3oPipeline, tmp_path: Path) -> None:
    write_images(tiny_pipe, ["a cat"], tmp_path)
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    for bad in ("", "<image>", "cat " * 99):
        with pytest.raises(UsageError):
            write_images(tiny_pipe, ["a dog", "a bus", bad], tmp_path, batch_size=1)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before


def test_a_full_disk_raises_an_error_of_one_line(
    tiny_pipe: Blip3oPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UsageError, match=r"cannot write .*: the disk is full"):
        write_images(tiny_pipe, ["a cat"], tmp_path)
    assert not [one for one in tmp_path.iterdir() if one.suffix == ".png"]


@pytest.mark.parametrize("name", ["x.png", "x.JPG", "x.jpeg", "x.webp", "new/x.png"])
def test_images_are_saved_by_their_suffix(tmp_path: Path, name: str) -> None:
    save_image(Image.new("RGB", (4, 4)), tmp_path / name)
    assert Image.open(tmp_path / name).size == (4, 4)
    assert [p.name for p in (tmp_path / name).parent.iterdir()] == [Path(name).name]


@pytest.mark.parametrize("name", ["x", "x.txt", "x.psd", "x.pdf"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"use a name that ends in \.png, \.jpg or \.webp"):
        save_image(Image.new("RGB", (4, 4)), tmp_path / name)
    assert not list(tmp_path.iterdir())
