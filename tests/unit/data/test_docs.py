"""Every task accepts its example records in docs/data.md."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from blip3o.core.config import from_dict
from blip3o.core.types import Record
from blip3o.data.loader import BadSample
from blip3o.data.mixture import DataConfig, MixtureEntry
from blip3o.data.scenes.export import scene_fields
from blip3o.data.scenes.scene import sample_scene
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.data.tasks import IMAGES, TASKS

DOCS = Path(__file__).parents[3] / "docs" / "data.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_task_has_an_example_that_it_accepts(task: str) -> None:
    rows = [json.loads(line) for block in blocks(f"json {task}") for line in block.splitlines()]
    assert rows
    for row in rows:
        assert {role for role in ("image", "source", "target") if role in row} == set(IMAGES[task])
        record = Record(key="k", index=0, epoch=0, position=0, source="s", files={}, fields=row)
        assert TASKS[task].make(record, np.random.default_rng(0)).task == task


def test_the_published_mix_and_the_folder_are_real() -> None:
    mix = yaml.safe_load(blocks("yaml mix")[0])
    config = from_dict(DataConfig, mix)
    assert [entry.weight for entry in config.mixture] == [27, 5, 4]
    folder = yaml.safe_load(blocks("yaml")[1])
    entry = from_dict(MixtureEntry, {**folder, "task": "text_to_image"})
    assert entry.source.kind == "folder"
    listed = from_dict(MixtureEntry, {**yaml.safe_load(blocks("yaml list")[0]), "task": "text"})
    assert listed.source.image_folder == "data/coco"


def test_the_named_field_of_a_record_is_in_the_scenes() -> None:
    mix = yaml.safe_load(blocks("yaml restated")[0])
    (entry,) = from_dict(DataConfig, mix).mixture
    assert entry.conversation in scene_fields(sample_scene(0, 0), 0, np.random.default_rng(0))


def test_the_example_config_and_quarantine_line_are_real() -> None:
    config = from_dict(DataConfig, yaml.safe_load(blocks("yaml")[0])["data"])
    assert [entry.source.name for entry in config.mixture] == ["scenes", "edits"]
    BadSample(**json.loads(blocks("json")[0]))


def test_every_form_of_a_conversation_is_one_that_is_read(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "d.jsonl").write_text("".join(blocks("json talk")), encoding="utf-8")
    source = JsonlConfig(path=f"{tmp_path}/d.jsonl", name="d").build()
    counts = []
    for position in range(len(source)):
        key, files, row = source.read(position)
        record = Record(
            key=key, index=0, epoch=0, position=position, source="d", files=files, fields=row
        )
        example = TASKS["image_to_text"].make(record, np.random.default_rng(0))
        counts.append(len(example.prompt_images))
    assert counts == [1, 2, 0]
