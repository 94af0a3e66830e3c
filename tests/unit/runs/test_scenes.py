"""The scenes data set that pocket recipes write if it is missing."""

import json
from pathlib import Path

import pytest

from blip3o.core.errors import UsageError
from blip3o.recipes import pocket
from blip3o.runs import scenes
from blip3o.runs.scenes import ScenesConfig, ensure_scenes


def test_scenes_are_written_once_and_scenes_of_another_version_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ScenesConfig(num_scenes=2, num_edits=0, num_pairs=0)
    monkeypatch.setattr(scenes, "_OWN", {"runs/scenes": few})
    data = pocket.encoder().data
    ensure_scenes(data)
    shard = tmp_path / "runs/scenes/scenes-000000.tar"
    written = shard.stat().st_mtime_ns
    ensure_scenes(data)
    assert shard.stat().st_mtime_ns == written
    settings = tmp_path / "runs/scenes/export.json"
    older = json.loads(settings.read_text()) | {"version": 1}
    settings.write_text(json.dumps(older))
    with pytest.raises(UsageError, match="another version; move it away"):
        ensure_scenes(data)
