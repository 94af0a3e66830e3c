"""Tar shards and JSON lines: the same records, random access, and clear words about damage."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.data.sources.webdataset import WebDatasetConfig


def png(color: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


RECORDS = [((k * 20, 0, 0), f"caption {k}") for k in range(5)]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for shard, records in enumerate((RECORDS[:3], RECORDS[3:])):
        members = {}
        for k, (color, caption) in enumerate(records):
            key = f"{shard}{k}"
            members[f"{key}.png"] = png(color)
            members[f"{key}.json"] = json.dumps({"captions": [caption]}).encode()
        write_tar(tmp_path / f"s-{shard}.tar", members)
    return tmp_path


def test_records_are_read_in_any_order(shards: Path) -> None:
    source = WebDatasetConfig(path=f"{shards}/s-*.tar", name="s").build()
    assert len(source) == 5
    for position in (4, 0, 2, 3, 1):
        color, caption = RECORDS[position]
        _, files, fields = source.read(position)
        assert Image.open(io.BytesIO(files["image"])).getpixel((0, 0)) == color
        assert fields["captions"] == [caption]


def test_the_index_is_kept_and_made_anew_for_another_shard(shards: Path) -> None:
    config = WebDatasetConfig(path=f"{shards}/s-0.tar", name="s")
    assert len(config.build()) == 3
    assert (shards / "s-0.tar.index.json").exists()
    assert len(config.build()) == 3
    write_tar(shards / "s-0.tar", {"a.png": png((1, 2, 3)), "a.txt": b" a thing "})
    source = config.build()
    assert len(source) == 1
    assert source.read(0)[2] == {"caption": "a thing"}


def test_edits_have_a_source_and_a_target(tmp_path: Path) -> None:
    members = {
        "7.source.png": png((1, 0, 0)),
        "7.target.png": png((2, 0, 0)),
        "7.json": json.dumps({"instruction": "make it red"}).encode(),
    }
    write_tar(tmp_path / "e.tar", members)
    key, files, fields = WebDatasetConfig(path=f"{tmp_path}/e.tar", name="e").build().read(0)
    assert (key, set(files), fields) == ("7", {"source", "target"}, {"instruction": "make it red"})


def test_json_lines_give_the_records_of_the_tar(shards: Path, tmp_path: Path) -> None:
    lines = []
    for k, (color, caption) in enumerate(RECORDS):
        (tmp_path / f"{k}.png").write_bytes(png(color))
        lines.append(json.dumps({"image": f"{k}.png", "captions": [caption]}))
    (tmp_path / "d.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    (tmp_path / "d.json").write_text(f"[{','.join(lines)}]", encoding="utf-8")
    tar = WebDatasetConfig(path=f"{shards}/s-*.tar", name="s").build()
    for name in ("d.jsonl", "d.json"):
        source = JsonlConfig(path=str(tmp_path / name), name="d").build()
        assert len(source) == len(tar)
        for position in range(len(tar)):
            assert source.read(position)[1:] == tar.read(position)[1:]


def test_a_truncated_shard_is_named(shards: Path) -> None:
    whole = (shards / "s-0.tar").read_bytes()
    (shards / "s-0.tar").write_bytes(whole[:1700])
    with pytest.raises(UsageError, match=r"s-0\.tar is damaged"):
        WebDatasetConfig(path=f"{shards}/s-*.tar", name="s").build()


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no shard matches"):
        WebDatasetConfig(path=f"{tmp_path}/*.tar", name="s").build()
    with pytest.raises(UsageError, match="no such data file"):
        JsonlConfig(path=f"{tmp_path}/d.jsonl", name="d").build()
    (tmp_path / "d.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match="list of records"):
        JsonlConfig(path=f"{tmp_path}/d.json", name="d").build()
