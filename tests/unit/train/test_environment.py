"""The recorded environment of a run."""

import json
import sys
from pathlib import Path

import pytest
import torch

from blip3o.train.environment import write_environment


def test_the_first_start_is_kept_and_later_ones_are_added_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["blip3o", "first"])
    write_environment(tmp_path, torch.device("cpu"))
    monkeypatch.setattr(sys, "argv", ["blip3o", "second"])
    write_environment(tmp_path, torch.device("cpu"))
    write_environment(tmp_path, torch.device("cpu"))
    found = json.loads((tmp_path / "env.json").read_text())
    assert found["command"] == ["blip3o", "first"]
    assert [start["command"] for start in found["resumed_with"]] == [["blip3o", "second"]]
    assert found["device"] == "cpu"
    assert found["packages"]["torch"] == torch.__version__
    assert {"commit", "uncommitted_changes", "python", "platform"} <= set(found)


def test_a_truncated_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "env.json").write_text('{"commit": ')
    write_environment(tmp_path)
    assert json.loads((tmp_path / "env.json").read_text())["resumed_with"] == []
