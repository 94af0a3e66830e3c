"""Reports of left-out records: by `data pack`, `data stats`, and a run at its start and end."""

import dataclasses
import io
import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o.cli import main
from blip3o.core.errors import UsageError
from blip3o.data.cache import FeatureCache, build_cache
from blip3o.data.collate import Preparer
from blip3o.data.loader import Loader
from blip3o.data.mixture import DataConfig, MixtureEntry
from blip3o.data.pack import pack
from blip3o.data.sources.folder import FolderConfig
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.data.sources.webdataset import WebDatasetConfig
from blip3o.data.stats import Stats

PX = 8


def image(file: Path, level: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (PX, PX), (level, 0, 0)).save(file)
    file.with_suffix(".txt").write_text("a cat")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five records, two of them unusable, and one file that is passed over."""
    base = tmp_path / "own"
    for name in ("a.png", "in/b.gif", "in/c.jpg"):
        image(base / name)
    (base / "d.png").write_bytes(b"broken")
    (base / "d.txt").write_text("a cat")
    (base / "e.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (base / "f.heic").write_bytes(b"x")
    return base


def test_packing_reports_omissions_and_keeps_names(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["data", "pack", str(folder), "--out", str(out), "--jobs", "1"]) == 0
    printed = capsys.readouterr().out
    skipped = out / "own-000000.skipped.jsonl"
    assert f"3 of 5 records packed; 2 left out, see {skipped}" in printed
    assert "it is a git-lfs pointer: fetch the file: git lfs pull" in printed
    assert "1  passed over: an image of a kind that is not read: .heic (f.heic)" in printed
    assert len(skipped.read_text(encoding="utf-8").splitlines()) == 2
    source = WebDatasetConfig(path=f"{out}/own-*.tar", name="own").build()
    fields = [source.read(k)[2] for k in range(len(source))]
    assert [one["file_name"] for one in fields] == ["a.png", "in/b.gif", "in/c.jpg"]


def test_names_in_a_list_and_in_shards_are_kept(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    rows = [{"image": "a.png", "caption": "x", "id": "mine"}, {"image": "a.png", "caption": "y"}]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for path, out in ((tmp_path / "d.jsonl", "one"), (tmp_path / "one" / "d-000000.tar", "two")):
        pack(str(path), tmp_path / out, name="d", shard_size=5, jobs=1)
        source = WebDatasetConfig(path=f"{tmp_path}/{out}/d-*.tar", name="d").build()
        assert source.read(0)[2]["id"] == "mine"
    assert source.read(1)[2] == {"caption": "y", "id": "000000001"}


def test_several_images_and_conversations_come_back_from_shards(tmp_path: Path) -> None:
    for name, level in (("a.png", 1), ("b.png", 2)):
        image(tmp_path / name, level)
    talk = [{"role": "user", "content": "<image><image>?"}, {"role": "assistant", "content": "x"}]
    row = {"images": ["a.png", "b.png"], "messages": talk}
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    pack(str(tmp_path / "d.jsonl"), tmp_path / "out", name="d", shard_size=5, jobs=1)
    packed = WebDatasetConfig(path=f"{tmp_path}/out/d-*.tar", name="d").build().read(0)
    assert packed[1:] == JsonlConfig(path=f"{tmp_path}/d.jsonl", name="d").build().read(0)[1:]


@pytest.mark.parametrize("size", [1, 5])
def test_packing_nothing_fails_and_leaves_no_shards(
    tmp_path: Path, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = tmp_path / "bad", tmp_path / "out"
    for name in ("a.png", "b.png"):
        image(base / name)
        (base / name).write_bytes(b"broken")
    command = ["data", "pack", str(base), "--out", str(out), "--shard-size", str(size)]
    assert main([*command, "--jobs", "1"]) == 2
    printed = capsys.readouterr()
    assert "can be packed: 2 of 2 left out" in printed.err
    assert "out/bad-000000.skipped.jsonl" in printed.err
    assert "Traceback" not in printed.err
    assert all(file.name.endswith(".skipped.jsonl") for file in out.iterdir())
    for name in ("a.png", "b.png"):
        image(base / name)
    assert main([*command, "--jobs", "1"]) == 0
    assert "2 of 2 records packed" in capsys.readouterr().out
    assert not list(out.glob("*.skipped.jsonl"))


def test_an_unreachable_store_does_not_count_as_a_bad_record(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise UsageError("cannot be reached")

    monkeypatch.setattr("blip3o.data.sources.folder.FolderSource.read", fail)
    with pytest.raises(UsageError, match="cannot be reached"):
        pack(str(folder), tmp_path / "out", name=None, shard_size=5, jobs=1)


def test_a_full_disk_is_one_line(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("blip3o.data.pack.tarfile.TarFile.addfile", fail)
    assert main(["data", "pack", str(folder), "--out", str(tmp_path / "o"), "--jobs", "1"]) == 2
    assert "the disk is full; free some space" in capsys.readouterr().err


def test_shards_of_unknown_origin_and_damaged_notes_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o"
    command = ["data", "pack", str(folder), "--out", str(out), "--jobs", "1"]
    out.mkdir()
    strange = out / "own-000003.tar"
    strange.write_bytes(b"somebody's")
    assert main(command) == 2
    assert "of unknown origin" in capsys.readouterr().err
    assert strange.read_bytes() == b"somebody's"
    strange.unlink()
    assert main(command) == 0
    notes, settings = out / "own-000000.skipped.jsonl", out / "own.pack.json"
    for file, content, message in (
        (notes, "{", "own-000000.skipped.jsonl is damaged: remove it and own-000000.tar"),
        (notes, "[1]", "is damaged"),
        (settings, "{", "of unknown origin"),
        (settings, '{"data": "x"}', "packed from other data or with another --shard-size"),
    ):
        before = file.read_text()
        file.write_text(content)
        capsys.readouterr()
        assert main(command) == 2
        assert message in capsys.readouterr().err
        file.write_text(before)
    assert main(command) == 0
    assert main([*command, "--name", "../x"]) == 2
    assert "is not a file name" in capsys.readouterr().err


def test_two_simultaneous_calls_pack_once(folder: Path, tmp_path: Path) -> None:
    def run() -> None:
        pack(str(folder), tmp_path / "out", name=None, shard_size=1, jobs=1)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pack(str(folder), tmp_path / "alone", name=None, shard_size=1, jobs=1)
    for file in (tmp_path / "alone").glob("*.tar"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        file.name for file in (tmp_path / "alone").iterdir()
    }


def test_only_the_first_reasons_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image(tmp_path / "own" / "z.png")
    for number in range(40):
        (tmp_path / "own" / f"{number}.png").write_bytes(b"version https://git-lfs.github.com/\n")
    out = str(tmp_path / "out")
    assert main(["data", "pack", str(tmp_path / "own"), "--out", out, "--jobs", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) < 10


def test_columns_of_the_measures_are_separated() -> None:
    values = np.array([3.0, 123456.789, 5e12])
    stats = Stats(
        name="s",
        num_records=3,
        num_broken=0,
        formats=Counter(),
        measures={"image_bytes": values, "a_very_long_measure_name": values / 7},
        samples=[],
    )
    rows = [line.split() for line in stats.text().splitlines()[1:]]
    assert [len(row) for row in rows] == [7, 8, 8]
    assert len({len(line) for line in stats.text().splitlines()[1:]}) == 1


def test_the_path_of_the_page_is_printed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["data", "stats", str(folder), "--jobs", "1", "--out", str(page)]) == 0
    printed = capsys.readouterr().out
    assert f"page: {page}" in printed
    assert "passed over: 1 x an image of a kind that is not read: .heic" in printed


def loader(source: Any, preparer: Preparer, tmp_path: Path, **changes: Any) -> Loader:
    entry = MixtureEntry(source=source, task=changes.pop("task", "text_to_image"))
    config = DataConfig(mixture=(entry,), bad_sample_limit=1.0)
    settings: dict[str, Any] = {"seed": 0, "global_batch_size": 2, "micro_batch_size": 8, **changes}
    return Loader(config, preparer, quarantine=tmp_path / "quarantine.jsonl", **settings)


def test_a_run_names_the_records_that_it_leaves_out(
    folder: Path, preparer: Preparer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.txt").rename(folder / "aa.txt")
    source = FolderConfig(path=str(folder), name="own", caption="my cat")
    run = loader(source, preparer, tmp_path)
    printed = capsys.readouterr().err
    assert "own: passed over 1 x an image of a kind that is not read: .heic (f.heic)" in printed
    assert "while 2 images take the default caption 'my cat' (aa.txt)" in printed
    steps = run(0)
    next(steps)
    while run.num_seen < 10:
        next(steps)
    printed = capsys.readouterr().err.splitlines()
    assert sorted(line.partition(": ")[0] for line in printed) == ["left out", "left out"]
    assert "own d.png: the image is not an image" in "".join(printed)


@pytest.fixture
def mixed(tmp_path: Path) -> JsonlConfig:
    """Conversations about one image, about two, and about none."""
    for name, level in (("a.png", 50), ("b.png", 150)):
        image(tmp_path / name, level)

    def talk(marks: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": f"{marks}What is it?"}, {"from": "gpt", "value": "red"}]

    rows = [
        {"image": "a.png", "conversations": talk("<image>\n")},
        {"conversations": talk("")},
        {"image": ["a.png", "b.png"], "conversations": talk("<image><image>\n")},
        {"image": ["b.png"], "conversations": talk("")},
    ]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    return JsonlConfig(path=f"{tmp_path}/d.json", name="d")


@pytest.mark.parametrize("is_cached", [False, True])
def test_batches_may_mix_conversations_about_one_image_several_and_none(
    mixed: JsonlConfig, preparer: Preparer, tmp_path: Path, is_cached: bool
) -> None:
    if is_cached:
        cache = FeatureCache(f"{tmp_path}/cache", "f")
        build_cache(
            cache,
            mixed.build(),
            "image",
            lambda pixels: pixels.mean((2, 3))[:, None],
            image_px=PX,
        )
        preparer = dataclasses.replace(preparer, cache=cache)
    run = loader(mixed, preparer, tmp_path, task="image_to_text", global_batch_size=4)
    batches = next(run(0))
    assert run.num_bad == 0
    pad = preparer.chat.tokenizer.image_pad_id
    num_rows = num_images = 0
    for batch in batches:
        num_rows += len(batch)
        given = batch.prompt_features if batch.prompt_pixels is None else batch.prompt_pixels
        images = 0 if given is None else len(given)
        # An image takes two tokens, so every batch must have as many images as its rows need.
        assert int((batch.input_ids == pad).sum()) == 2 * images
        num_images += images
    assert (num_rows, num_images) == (4, 4)
    assert any(batch.prompt_features is not None for batch in batches) == is_cached


def test_the_order_of_several_images_is_that_of_their_marks(
    mixed: JsonlConfig, preparer: Preparer, tmp_path: Path
) -> None:
    run = loader(mixed, preparer, tmp_path, task="image_to_text", global_batch_size=4)
    (batch,) = next(run(0))
    assert isinstance(batch.prompt_pixels, torch.Tensor)
    levels = [round(float((one[0].mean() + 1) * 127.5)) for one in batch.prompt_pixels]
    pairs = [levels[k : k + 2] for k in range(3)]
    assert [50, 150] in pairs


def test_an_image_with_a_wrong_ending_is_packed(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (PX, PX)).save(buffer, "TIFF")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.png").write_bytes(buffer.getvalue())  # a TIFF with a wrong ending
    pack(str(tmp_path / "own"), tmp_path / "out", name="o", shard_size=5, jobs=1)
    source = WebDatasetConfig(path=f"{tmp_path}/out/o-*.tar", name="o").build()
    assert source.read(0)[1]["image"].startswith(b"\x89PNG")
