"""The profiler: it writes a trace and a table, and changes no number."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_a_profiled_run_equals_one_without_a_profiler(
    toys: Any, tmp_path: Path, read_run: Callable[[Path], dict[str, Any]]
) -> None:
    toys.trainer(tmp_path / "plain", toys.with_train(steps=5)).fit()
    toys.trainer(tmp_path / "profiled", toys.with_train(steps=5, profile=True)).fit()
    toys.trainer(tmp_path / "plain").fit()
    toys.trainer(tmp_path / "profiled", toys.with_train(profile=True)).fit()
    plain, profiled = (read_run(tmp_path / name) for name in ("plain", "profiled"))
    assert plain["state"].pop("digest") != profiled["state"].pop("digest")  # of the config, too
    assert profiled == plain
    assert not (tmp_path / "plain" / "profile").exists()


def test_a_profile_is_a_trace_of_three_steps_and_a_table_of_operations(
    toys: Any, tmp_path: Path
) -> None:
    toys.trainer(tmp_path, toys.with_train(profile=True)).fit()
    folder = tmp_path / "profile"
    assert {file.name for file in folder.iterdir()} == {"trace.json.gz", "operations.txt"}
    with gzip.open(folder / "trace.json.gz", "rt") as file:
        names = [event.get("name", "") for event in json.load(file)["traceEvents"]]
    assert sum(name.startswith("ProfilerStep#") for name in names) >= 3
    assert "aten::addmm" in names
    table = (folder / "operations.txt").read_text()
    assert "Self CPU" in table
    assert "CPU Mem" in table


@pytest.mark.parametrize(("steps", "is_written"), [(4, False), (5, True)])
def test_a_run_that_is_too_short_for_a_profile_gets_a_warning(
    toys: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: int, is_written: bool
) -> None:
    toys.trainer(tmp_path, toys.with_train(steps=steps, profile=True)).fit()
    assert ("recorded nothing" in capsys.readouterr().err) is not is_written
    assert (tmp_path / "profile").exists() is is_written


def test_a_profile_that_cannot_be_written_does_not_end_the_run(
    toys: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "profile").write_text("a file in place of the folder")
    toys.trainer(tmp_path, toys.with_train(profile=True)).fit()
    assert "warning: the profile could not be written" in capsys.readouterr().err
    assert (tmp_path / "latest").read_text() == "step-00000012\n"
