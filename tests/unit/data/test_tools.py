"""`blip3o data index | lint | stats | pack`: findings, files and messages."""

import base64
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip3o.cli import main
from blip3o.core.errors import UsageError
from blip3o.data.lint import ODD, LintChecks, lint
from blip3o.data.pack import pack
from blip3o.data.sources.folder import FolderConfig
from blip3o.data.sources.shards import INDEX_SUFFIX
from blip3o.data.sources.webdataset import WebDatasetConfig
from blip3o.data.stats import collect, describe

WriteTar = Callable[[Path, dict[str, bytes]], None]


def make_image(size: tuple[int, int] = (80, 80), mode: str = "RGB", kind: str = "PNG") -> bytes:
    image = Image.linear_gradient("L").resize(size)
    buffer = io.BytesIO()
    (image if mode == "I;16" else image.convert(mode)).save(buffer, kind)
    return buffer.getvalue()


def caption_json(text: str = "a cat") -> bytes:
    return json.dumps({"caption": text}).encode()


@pytest.fixture
def mixed(tmp_path: Path, write_tar: WriteTar) -> Path:
    """Records with one problem each, and four good ones."""
    good = make_image()
    members: dict[str, bytes] = {}
    for number in range(4):
        members |= {f"good{number}.png": good, f"good{number}.json": caption_json()}
    members |= {
        "cut.jpg": make_image(kind="JPEG")[:300],
        "cut.json": caption_json(),
        "empty.png": b"",
        "empty.json": caption_json(),
        "magic.png": b"GIF8" + good[4:],
        "magic.json": caption_json(),
        "nojson.png": good,
        "nojson.json": b"{",
        "utf8.png": good,
        "utf8.txt": b"\xff\xfe cat",
        "mute.png": good,
        "blank.png": good,
        "blank.json": caption_json(" "),
        "cmyk.jpg": make_image(mode="CMYK", kind="JPEG"),
        "cmyk.json": caption_json(),
        "alpha.png": make_image(mode="RGBA"),
        "alpha.json": caption_json(),
        "long.png": make_image((600, 80)),
        "long.json": caption_json(),
        "small.png": make_image((20, 20)),
        "small.json": caption_json(),
    }
    Image.new("RGBA", (80, 80), (9, 9, 9, 50)).save(tmp_path / "alpha.png")
    members["alpha.png"] = (tmp_path / "alpha.png").read_bytes()
    (tmp_path / "alpha.png").unlink()
    write_tar(tmp_path / "mixed.tar", members)
    with tarfile.open(tmp_path / "mixed.tar", "a") as tar:
        for suffix, data in (("png", good), ("json", caption_json())):
            info = tarfile.TarInfo(f"good1.{suffix}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return tmp_path / "mixed.tar"


@pytest.mark.parametrize("jobs", [1, 2])
def test_lint_finds_each_of_them_and_nothing_else(mixed: Path, tmp_path: Path, jobs: int) -> None:
    report = lint(
        [str(mixed)], LintChecks(tasks=("text_to_image",)), jobs=jobs, out=tmp_path / "f.jsonl"
    )
    found = {(one.key, one.problem) for one in report.findings}
    unfit = "unfit for text_to_image"
    assert found == {
        ("cut", "broken image"),
        ("empty", "broken image"),
        ("magic", "broken image"),
        ("?", "broken record"),
        ("mute", unfit),
        ("blank", unfit),
        ("good1", "duplicate key"),
        *((key, ODD) for key in ("cmyk", "alpha", "long", "small")),
    }
    assert sum(one.problem == "broken record" for one in report.findings) == 2
    assert report.num_records == 16
    assert not report.is_clean
    lines = (tmp_path / "f.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(report.findings)
    assert all("\n" not in one.detail for one in report.findings)


def animation(kind: str) -> bytes:
    frames = [Image.linear_gradient("L").resize((8, 8)).rotate(90 * turn) for turn in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_lint_reads_past_truncated_animations(tmp_path: Path, kind: str) -> None:
    data = animation(kind)
    for size in range(20, len(data), 7):
        (tmp_path / f"{size:04d}.{kind.lower()}").write_bytes(data[:size])
        (tmp_path / f"{size:04d}.txt").write_text("a cat")
    report = lint([str(tmp_path)], LintChecks(min_px=1))
    assert {one.problem for one in report.findings} == {"broken image", ODD}
    assert any("animated, and damaged" in one.detail for one in report.findings)


def test_lint_names_a_damaged_shard_and_reads_the_rest(mixed: Path) -> None:
    data = bytearray(mixed.read_bytes())
    with tarfile.open(mixed) as tar:
        place = next(m.offset for m in tar if m.name == "good2.png")
    data[place + 2] ^= 1
    mixed.write_bytes(data)
    (damaged,) = (
        one for one in lint([str(mixed)], LintChecks()).findings if one.problem == "damaged shard"
    )
    assert damaged.key == str(mixed)
    assert str(place) in damaged.detail


def test_a_clean_set_ends_with_status_0(
    scenes: WebDatasetConfig, mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "lint", scenes.path, "--jobs", "1", "--min-px", "8"]) == 0
    assert capsys.readouterr().out.startswith("12 records, ")
    assert main(["data", "lint", str(mixed), "--jobs", "1"]) == 1
    assert "duplicate key: mixed good1" in capsys.readouterr().out
    assert main(["data", "lint", str(mixed), "--task", "txt"]) == 2
    assert main(["data", "lint", "/nowhere/*.tar"]) == 2


def test_index_is_written_once_by_several_processes(
    scenes: WebDatasetConfig, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "index", scenes.path, "--jobs", "2"]) == 0
    assert capsys.readouterr().out == f"{scenes.path}: 12 records in 2 shards\n"
    files = [shards / f"scenes-{k}.tar{INDEX_SUFFIX}" for k in range(2)]
    times = [file.stat().st_mtime_ns for file in files]
    files[1].unlink()  # like an interrupted call
    assert main(["data", "index", scenes.path, "--jobs", "2"]) == 0
    assert files[0].stat().st_mtime_ns == times[0]
    assert files[1].exists()
    (shards / "a.jsonl").touch()
    assert main(["data", "index", str(shards / "a.jsonl")]) == 2


def test_stats_are_those_of_the_data(mixed: Path, tmp_path: Path) -> None:
    stats = collect(str(mixed), num_samples=5)
    assert stats.num_records == 16
    assert stats.measures["aspect"].max() == pytest.approx(7.5)
    assert stats.measures["caption_words"].max() == 2
    assert stats.formats["JPEG CMYK"] == 1
    text = describe([str(mixed)], jobs=2, out=tmp_path / "page" / "stats.html")
    assert "16 records" in text
    page = (tmp_path / "page" / "stats.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 5
    first = page.split("base64,")[1].split('"')[0]
    assert Image.open(io.BytesIO(base64.b64decode(first))).format == "JPEG"
    assert "http" not in page  # the page loads nothing from the network


def test_captions_on_the_page_are_text(tmp_path: Path, write_tar: WriteTar) -> None:
    write_tar(
        tmp_path / "x.tar", {"a.png": make_image(), "a.json": caption_json("<script>x</script>")}
    )
    describe([str(tmp_path / "x.tar")], out=tmp_path / "s.html")
    assert "<script>" not in (tmp_path / "s.html").read_text(encoding="utf-8")


def test_tools_accept_names_and_texts_that_are_not_unicode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "old"
    base.mkdir()
    for name in (b"caf\xe9.png", b"plain.png"):  # Latin-1, as on old disks
        try:
            Path(os.fsdecode(os.fsencode(base) + b"/" + name)).write_bytes(make_image())
        except OSError:
            pytest.skip("this file system takes Unicode names only")
    assert len(FolderConfig(path=str(base), name="old").build().fingerprint()) == 32
    row = r'{"id": "\ud800", "image": "plain.png", "captions": "half \ud800"}'
    more = r'{"id": "\ud801", "image": "plain.png", "caption": "half \ud800"}'
    (base / "list.jsonl").write_text(f"{row}\n{more}\n", encoding="utf-8")
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", printed)
    for path in (base, base / "list.jsonl"):
        out = ["--out", str(tmp_path / f"{path.name}.html"), "--jobs", "1"]
        assert main(["data", "lint", str(path), "--task", "text_to_image", "--jobs", "1"]) == 1
        assert main(["data", "stats", str(path), *out]) == 0
    printed.flush()
    printed_text = printed.buffer.getvalue().decode()
    assert r"caf\udce9.png: the record has no 'caption'" in printed_text
    assert (
        "caption_words            1" in printed_text
    )  # the letters of a text are not counted as captions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base = tmp_path / "images"
    (base / "in").mkdir(parents=True)
    for number in range(7):
        (base / f"{number}.v1.png").write_bytes(make_image((64 + number, 64)))
        (base / f"{number}.v1.txt").write_text(f"number {number}", encoding="utf-8")
    (base / "in" / "b.gif").write_bytes(make_image(mode="L", kind="GIF"))
    (base / "in" / "b.json").write_bytes(caption_json("a gif"))
    (base / "in" / "c.jpg").write_bytes(b"broken")
    return base


def test_a_folder_becomes_shards_and_comes_back(folder: Path, tmp_path: Path) -> None:
    shards = pack(str(folder), tmp_path / "out", name="my", shard_size=4, jobs=2).shards
    assert [shard.name for shard in shards] == [f"my-00000{k}.tar" for k in range(3)]
    source = WebDatasetConfig(path=f"{tmp_path}/out/my-*.tar", name="my").build()
    records = [source.read(k) for k in range(len(source))]
    assert [fields["caption"] for _, _, fields in records] == [
        *(f"number {k}" for k in range(7)),
        "a gif",
    ]
    assert records[3][1]["image"] == (folder / "3.v1.png").read_bytes()
    assert Image.open(io.BytesIO(records[7][1]["image"])).format == "PNG"
    (skipped,) = (tmp_path / "out").glob("*.skipped.jsonl")
    assert json.loads(skipped.read_text(encoding="utf-8"))["key"] == "in/c.jpg"
    assert main(["data", "lint", f"{tmp_path}/out/my-*.tar", "--jobs", "1"]) == 0


def test_packing_resumes_and_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    def pack_to(out: str) -> list[Path]:
        return pack(str(folder), tmp_path / out, name=None, shard_size=4, jobs=1).shards

    shards = pack_to("one")
    before = [(shard.read_bytes(), shard.stat().st_mtime_ns) for shard in shards]
    shards[1].unlink()
    assert pack_to("one") == shards
    assert shards[0].stat().st_mtime_ns == before[0][1]
    assert [shard.read_bytes() for shard in shards] == [data for data, _ in before]
    assert [shard.read_bytes() for shard in pack_to("two")] == [data for data, _ in before]
    with pytest.raises(UsageError, match="other data or with another --shard-size"):
        pack(str(folder), tmp_path / "one", name=None, shard_size=5, jobs=1)
    (folder / "3.v1.txt").write_text("another caption", encoding="utf-8")
    with pytest.raises(UsageError, match="other data or with another --shard-size"):
        pack_to("one")  # the existing shards hold the old data


def test_a_list_of_edits_is_packed_with_its_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(make_image())
    row: dict[str, Any] = {"source": "a.png", "target": "b.png", "instruction": "turn"}
    (tmp_path / "e.jsonl").write_text(json.dumps(row), encoding="utf-8")
    out = tmp_path / "out"
    assert main(["data", "pack", str(tmp_path / "e.jsonl"), "--out", str(out), "--jobs", "1"]) == 0
    _, files, fields = WebDatasetConfig(path=f"{out}/e-*.tar", name="e").build().read(0)
    assert set(files) == {"source", "target"}
    assert fields == {"instruction": "turn"}
