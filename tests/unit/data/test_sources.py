"""Tar shards and JSON lines: the same records, random access, and clear errors."""

import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from blip3o.core.errors import UsageError
from blip3o.data.sources import local_files as local
from blip3o.data.sources import shards as module
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.data.sources.webdataset import WebDatasetConfig

WriteTar = Callable[[Path, dict[str, bytes]], None]


def test_records_are_read_in_any_order(scenes: WebDatasetConfig) -> None:
    source = scenes.build()
    assert len(source) == 12
    images = set()
    for position in (11, 0, 6, 7, 3):
        key, files, fields = source.read(position)
        assert key == f"{position:04d}"
        assert fields["captions"][1] == f"cat number {position}"
        images.add(files["image"])
    assert len(images) == 5


def test_the_index_is_kept_and_made_again_for_another_shard(
    shards: Path, write_tar: WriteTar, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = WebDatasetConfig(path=f"{shards}/scenes-0.tar", name="s")
    first = config.build()
    assert (shards / "scenes-0.tar.index.npz").exists()
    with monkeypatch.context() as patch:
        patch.setattr(module, "make_index", print)  # not called
        again = config.build()
    assert [again.read(k) for k in range(7)] == [first.read(k) for k in range(7)]
    write_tar(shards / "scenes-0.tar", {"a.png": b"P", "a.txt": b" a thing ", "a.cls": b"3"})
    source = config.build()
    assert len(source) == 1
    assert source.read(0) == ("a", {"image": b"P"}, {"caption": "a thing"})


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path, write_tar: WriteTar) -> None:
    write_tar(tmp_path / "a.tar", {"a.png": b"P", "a.txt": "a dog".encode("utf-8-sig")})
    source = WebDatasetConfig(path=str(tmp_path / "a.tar"), name="s").build()
    assert source.read(0)[2] == {"caption": "a dog"}
    for name, text in (("a.json", '[{"caption": "a dog"}]'), ("a.jsonl", '{"caption": "a dog"}')):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert JsonlConfig(path=str(tmp_path / name), name="s").build().read(0)[2] == {
            "caption": "a dog"
        }


@pytest.mark.parametrize("damage", ["{", "[]", '{"stamp": 1}', ""])
def test_a_damaged_index_is_made_again(scenes: WebDatasetConfig, shards: Path, damage: str) -> None:
    scenes.build()
    (shards / "scenes-0.tar.index.npz").write_text(damage, encoding="utf-8")
    assert len(scenes.build()) == 12


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_read(scenes: WebDatasetConfig, shards: Path) -> None:
    shards.chmod(0o500)
    try:
        assert len(scenes.build()) == 12
    finally:
        shards.chmod(0o700)


def test_edits_have_a_source_and_a_target(shards: Path) -> None:
    source = WebDatasetConfig(path=f"{shards}/edits-0.tar", name="e").build()
    key, files, fields = source.read(2)
    assert (key, set(files)) == ("2", {"source", "target"})
    assert fields == {"instruction": "make it blue 2"}


def test_keys_keep_their_folder_and_hidden_files_are_ignored(
    tmp_path: Path, write_tar: WriteTar
) -> None:
    members = {"x/1.png": b"A", "x/._1.png": b"?", "y/1.JPG": b"B", "y/1.txt": b"dog"}
    write_tar(tmp_path / "a.tar", members)
    source = WebDatasetConfig(path=f"{tmp_path}/a.tar", name="a").build()
    assert [source.read(k)[:2] for k in range(2)] == [
        ("x/1", {"image": b"A"}),
        ("y/1", {"image": b"B"}),
    ]


def test_more_shards_than_may_be_open(
    tmp_path: Path, write_tar: WriteTar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_MAX_OPEN_FILES", 2)
    for number in range(5):
        write_tar(tmp_path / f"{number}.tar", {"k.txt": str(number).encode()})
    source = WebDatasetConfig(path=f"{tmp_path}/*.tar", name="many").build()
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for position in (0, 1, 2, 0, 4, 3, 4, 0):
        assert source.read(position)[2] == {"caption": str(position)}
    if before:
        assert len(os.listdir("/proc/self/fd")) == before + 2
        del source
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_source_can_be_pickled(scenes: WebDatasetConfig) -> None:
    source = scenes.build()
    source.read(0)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read(8) == source.read(8)


def test_the_fingerprint_is_that_of_the_records(
    scenes: WebDatasetConfig, shards: Path, write_tar: WriteTar
) -> None:
    before = scenes.build().fingerprint()
    os.utime(shards / "scenes-1.tar")  # like a copy to another machine
    assert scenes.build().fingerprint() == before
    write_tar(shards / "scenes-1.tar", {"0007.png": b"other"})
    assert scenes.build().fingerprint() != before


def test_json_lines_give_the_records_of_the_tar(scenes: WebDatasetConfig, shards: Path) -> None:
    tar = scenes.build()
    lines = []
    for position in range(len(tar)):
        key, files, fields = tar.read(position)
        (shards / f"{key}.png").write_bytes(files["image"])
        lines.append(json.dumps({"id": key, "image": f"{key}.png", **fields}))
    (shards / "d.jsonl").write_text("\n\n".join(lines) + "\n\n", encoding="utf-8")
    (shards / "d.json").write_text(f"[{','.join(lines)}]", encoding="utf-8")
    for name in ("d.jsonl", "d.json"):
        source = JsonlConfig(path=str(shards / name), name="d").build()
        assert len(source) == len(tar)
        for position in (5, 0, 11):
            key, files, fields = source.read(position)
            assert (key, files) == tar.read(position)[:2]
            assert {**fields, "id": key} == {**tar.read(position)[2], "id": key}


def test_json_lines_hold_edits(shards: Path) -> None:
    for role in ("source", "target"):
        (shards / f"{role}.png").write_bytes(role.encode())
    row = {"source": "source.png", "target": "target.png", "instruction": "turn it"}
    (shards / "e.jsonl").write_text(json.dumps(row), encoding="utf-8")
    source = JsonlConfig(path=f"{shards}/e.jsonl", name="e").build()
    expected = ("0", {"source": b"source", "target": b"target"}, {"instruction": "turn it"})
    assert source.read(0) == expected
    before = source.fingerprint()
    (shards / "e.jsonl").write_text(json.dumps({**row, "instruction": "t"}), encoding="utf-8")
    assert source.fingerprint() != before


def test_a_bad_record_is_a_value_error(shards: Path, write_tar: WriteTar) -> None:
    bad = {"json": b"{not json", "list.json": b"[1]", "deep.json": b"[" * 100_000, "txt": b"\xff"}
    write_tar(shards / "bad.tar", {f"{k}.{s}": data for k, (s, data) in enumerate(bad.items())})
    source = WebDatasetConfig(path=f"{shards}/bad.tar", name="bad").build()
    for position in range(len(bad)):
        with pytest.raises(ValueError, match=r"."):
            source.read(position)
    (shards / "bad.jsonl").write_bytes(b"{no\n[1]\n" + b"[" * 100_000 + b"\n\xff\n")
    lines = JsonlConfig(path=f"{shards}/bad.jsonl", name="bad").build()
    for position in range(len(lines)):
        with pytest.raises(ValueError, match=r"."):
            lines.read(position)


def test_a_missing_image_is_an_os_error(shards: Path) -> None:
    (shards / "m.jsonl").write_text('{"image": "gone.png", "caption": "x"}', encoding="utf-8")
    with pytest.raises(OSError, match=r"gone\.png"):
        JsonlConfig(path=f"{shards}/m.jsonl", name="m").build().read(0)


def _offset_of_third_member(path: Path) -> int:
    with tarfile.open(path) as tar:
        return tar.getmembers()[2].offset


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(lambda path: 0, id="empty"),
        pytest.param(lambda path: 100, id="first header"),
        pytest.param(lambda path: 1700, id="inside a member"),
        pytest.param(lambda path: _offset_of_third_member(path) + 100, id="inside a header"),
        pytest.param(_offset_of_third_member, id="between members"),
    ],
)
def test_a_truncated_shard_is_named(
    scenes: WebDatasetConfig, shards: Path, size: Callable[[Path], int]
) -> None:
    path = shards / "scenes-1.tar"
    path.write_bytes(path.read_bytes()[: size(path)])
    with pytest.raises(UsageError, match=r"scenes-1\.tar is damaged or not a plain tar: .*again$"):
        scenes.build()
    assert not (shards / "scenes-1.tar.index.npz").exists()


def test_a_damaged_header_is_not_the_end(scenes: WebDatasetConfig, shards: Path) -> None:
    path = shards / "scenes-0.tar"
    data = bytearray(path.read_bytes())
    data[_offset_of_third_member(path) + 5] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"scenes-0\.tar is damaged"):
        scenes.build()


def test_a_shard_cut_after_indexing_is_a_bad_record(scenes: WebDatasetConfig, shards: Path) -> None:
    source = scenes.build()
    os.truncate(shards / "scenes-1.tar", 600)
    assert source.read(0)[0] == "0000"
    with pytest.raises(ValueError, match=r"scenes-1\.tar ends inside record 0011"):
        source.read(11)


def test_missing_data_is_reported(tmp_path: Path) -> None:
    for path in (f"{tmp_path}/*.tar", str(tmp_path)):
        with pytest.raises(UsageError, match="no shard matches"):
            WebDatasetConfig(path=path, name="s").build()
    with pytest.raises(UsageError, match="no such data file"):
        JsonlConfig(path=f"{tmp_path}/d.jsonl", name="d").build()
    with pytest.raises(UsageError, match="cannot read"):
        JsonlConfig(path=str(tmp_path), name="d").build()
    for text in ("{}", "[1,"):
        (tmp_path / "d.json").write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match=r"list of records|not valid JSON"):
            JsonlConfig(path=f"{tmp_path}/d.json", name="d").build()
