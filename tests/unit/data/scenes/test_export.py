import io
import json
import shutil
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.data.scenes import export
from blip3o.data.scenes.edits import sample_chain
from blip3o.data.scenes.export import export_scenes
from blip3o.data.scenes.render import render
from blip3o.data.scenes.scene import sample_groups, sample_pair, sample_scene
from blip3o.data.scenes.types import Scene
from blip3o.data.sources import read_record
from blip3o.data.tasks import likely_tasks, make_example
from blip3o.data.walk import source_config


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {info.name: file.read() for info in tar if (file := tar.extractfile(info))}


def test_shards_hold_images_and_all_their_texts(tmp_path: Path) -> None:
    paths = export_scenes(tmp_path, 5, 3, px=32, shard_size=3, num_processes=1)
    assert [p.name for p in paths] == [
        *("scenes-000000.tar", "scenes-000001.tar", "edits-000000.tar"),
    ]
    assert [len(members(p)) for p in paths] == [6, 4, 9]
    shard = members(paths[1])
    image = Image.open(io.BytesIO(shard["00000004.png"]))
    assert image.tobytes() == render(sample_scene(0, 4), 32).tobytes()
    fields = json.loads(shard["00000004.json"])
    assert len(fields["captions"]) >= 2
    for key in ("conversations", "text_conversations"):
        speakers = [turn["from"] for turn in fields[key]]
        assert speakers == ["human", "gpt"] * (len(speakers) // 2)
        marks = [turn["value"].count("<image>") for turn in fields[key]]
        assert sum(marks) == (key == "conversations")
    assert fields["conversations"][0]["value"].startswith("<image>\n")
    assert {"thing", "color", "x", "y", "size"} == set(fields["objects"][0])
    assert fields["index"] == 4
    edits = members(paths[2])
    assert {"00000000.source.png", "00000000.target.png", "00000000.json"} <= set(edits)
    assert {"instruction", "kind", "source_objects", "target_objects", "background"} <= set(
        json.loads(edits["00000000.json"])
    )


@pytest.mark.parametrize(("what", "sample"), [("pairs", sample_pair), ("groups", sample_groups)])
def test_pairs_and_groups_come_with_images_and_captions(
    tmp_path: Path, what: str, sample: Callable[[int, int], Scene]
) -> None:
    counts: dict[str, Any] = {f"num_{what}": 2}
    (path,) = export_scenes(tmp_path, 0, **counts, px=32, num_processes=1)
    assert path.name == f"{what}-000000.tar"
    shard = members(path)
    image = Image.open(io.BytesIO(shard["00000001.png"]))
    assert image.tobytes() == render(sample(0, 1), 32).tobytes()
    assert len(json.loads(shard["00000001.json"])["captions"]) >= 5


@pytest.mark.parametrize("kind", ["webdataset", "jsonl"])
def test_chains_are_rows_of_text_and_images_in_turn(tmp_path: Path, kind: Any) -> None:
    (path,) = export_scenes(tmp_path, 0, num_chains=6, px=16, num_processes=1, format=kind)
    source = source_config(str(path)).build()
    assert len(source) == 6
    for position in range(6):
        record = read_record(source, position)
        assert likely_tasks(record) == ["interleaved"]
        example = make_example(record, "interleaved", np.random.default_rng(0))
        chain = sample_chain(0, position, wording="train")
        instructions = [one.text for one in example.messages if one.role == "user"]
        assert instructions == [
            ("" if k else "<image>\n") + edit.instruction for k, edit in enumerate(chain)
        ]
        scenes = [chain[0].source, *(edit.target for edit in chain)]
        assert len(example.prompt_images) == len(scenes)
        for role, scene in zip(example.prompt_images, scenes, strict=True):
            image = Image.open(io.BytesIO(record.files[role]))
            assert image.tobytes() == render(scene, 16).tobytes()


def test_an_export_of_a_version_without_a_setting_goes_on(tmp_path: Path) -> None:
    (path,) = export_scenes(tmp_path, 1, px=16, num_processes=1)
    notes = tmp_path / "export.json"
    settings = json.loads(notes.read_text())
    del settings["num_chains"]
    notes.write_text(json.dumps(settings))
    assert export_scenes(tmp_path, 1, px=16, num_processes=1) == [path]
    with pytest.raises(UsageError, match="holds an export with num_chains=0"):
        export_scenes(tmp_path, 1, num_chains=1, px=16, num_processes=1)


def test_bytes_depend_on_the_arguments_only_and_complete_shards_are_kept(tmp_path: Path) -> None:
    first = export_scenes(tmp_path / "a", 4, 2, px=32, shard_size=2, num_processes=1)
    second = export_scenes(tmp_path / "b", 4, 2, px=32, shard_size=2, num_processes=2)
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    kept = first[0].stat().st_mtime_ns
    whole = first[1].read_bytes()
    first[1].unlink()
    export_scenes(tmp_path / "a", 4, 2, px=32, shard_size=2, num_processes=1)
    assert first[1].read_bytes() == whole
    assert first[0].stat().st_mtime_ns == kept
    assert not list((tmp_path / "a").glob(".*"))


def test_jsonl_names_images_relative_to_itself(tmp_path: Path) -> None:
    paths = export_scenes(tmp_path, 2, 1, px=32, num_processes=1, format="jsonl")
    lines = [json.loads(line) for line in paths[0].read_text().splitlines()]
    assert len(lines) == 2
    assert Image.open(tmp_path / lines[1]["image"]).size == (32, 32)
    edit = json.loads(paths[1].read_text())
    assert Image.open(tmp_path / edit["source"]).size == (32, 32)
    assert Image.open(tmp_path / edit["target"]).size == (32, 32)
    assert edit["instruction"]


def test_two_exports_are_not_mixed(tmp_path: Path) -> None:
    export_scenes(tmp_path, 1, px=32, num_processes=1)
    with pytest.raises(UsageError, match="num_scenes=1"):
        export_scenes(tmp_path, 2, px=32, num_processes=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"px": 1}, "px"), ({"shard_size": 0}, "shard_size"), ({"format": "zip"}, "format")],
)
def test_bad_arguments_are_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        export_scenes(tmp_path, 1, **wrong)
    assert not list(tmp_path.iterdir())


def test_two_first_calls_write_every_shard_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    written: list[int] = []
    plain = export._write_shard

    def slow(shard: Any) -> None:
        written.append(shard[2])
        time.sleep(0.05)
        plain(shard)

    monkeypatch.setattr(export, "_write_shard", slow)
    failed: list[Exception] = []

    def call() -> None:
        try:
            export_scenes(tmp_path, 4, px=16, shard_size=1, num_processes=1)
        except Exception as error:  # noqa: BLE001  (a thread keeps it to itself)
            failed.append(error)

    calls = [threading.Thread(target=call) for _ in range(3)]
    for one in calls:
        one.start()
    for one in calls:
        one.join()
    assert not failed
    assert sorted(written) == [0, 1, 2, 3]
    assert "waiting for process" in capsys.readouterr().err


def test_ctrl_c_reports_the_progress_and_the_next_call_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    plain, calls = export._write_shard, iter(range(9))

    def stops(shard: Any) -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt
        plain(shard)

    (tmp_path / ".scenes-000003.tar.host.7.part").write_bytes(b"of a call that was killed")
    with monkeypatch.context() as patch:
        patch.setattr(export, "_write_shard", stops)
        with pytest.raises(KeyboardInterrupt):
            export_scenes(tmp_path, 4, px=16, shard_size=1, num_processes=1)
    err = capsys.readouterr().err
    assert "writing 4 samples in 4 shards, about 21.9 kB" in err
    assert f"2 of 4 shards are in {tmp_path}; the next call writes the rest" in err
    export_scenes(tmp_path, 4, px=16, shard_size=1, num_processes=1)
    assert "writing 2 samples in 2 shards" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))


def test_scenes_that_do_not_fit_on_the_disk_are_refused_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 300_000}))
    with pytest.raises(UsageError, match=r"1 shards of scenes need about 3\d\d.* are free"):
        export_scenes(tmp_path, 45, px=96, num_processes=1)
    assert not list(tmp_path.glob("*.tar"))
    export_scenes(tmp_path / "few", 5, px=96, num_processes=1)


@pytest.mark.parametrize("px", [48, 96])
def test_the_estimate_is_near_the_bytes_that_are_written(tmp_path: Path, px: int) -> None:
    for what in ("scenes", "edits", "pairs", "groups"):
        counts: dict[str, Any] = {"num_scenes": 0, f"num_{what}": 40}
        (shard,) = export_scenes(tmp_path / what, **counts, px=px, num_processes=1)
        assert shard.stat().st_size == pytest.approx(40 * export._sample_bytes(what, px), rel=0.15)
