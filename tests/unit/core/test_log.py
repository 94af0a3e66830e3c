"""Metrics files across kills and resumes, and progress without a terminal."""

import json
import os
import sys
from pathlib import Path

import pytest

from blip3o.core import log
from blip3o.core.log import MetricsLogger, progress, say


@pytest.fixture(autouse=True)
def _no_board(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard takes seconds to import and does not affect the lines."""
    monkeypatch.setattr(MetricsLogger, "_open_board", staticmethod(lambda *_: None))


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_the_line_of_a_step_is_on_disk_immediately(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path / "run")
    logger.log(1, {"loss": 0.5, "note": "x"})
    assert logger.path.read_text() == '{"step": 1, "loss": 0.5, "note": "x"}\n'
    logger.close()


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path)
    for step in range(1, 6):
        logger.log(step, {"loss": 1.0})
    logger.close()
    again = MetricsLogger(tmp_path, resume_step=3)
    again.log(4, {"loss": 2.0})
    again.close()
    assert steps(again.path) == [1, 2, 3, 4]


@pytest.mark.parametrize("tail", ['{"step": 3, "lo', '{"loss": 1}', "3", "", "\ufffd"])
def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path, tail: str) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n' + tail)
    logger = MetricsLogger(tmp_path, resume_step=10)
    logger.log(11, {})
    logger.close()
    assert steps(logger.path) == [1, 2, 11]


def test_a_whole_line_without_its_end_is_kept_apart_from_the_next(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}')
    logger = MetricsLogger(tmp_path, resume_step=2)
    logger.log(3, {})
    logger.close()
    assert steps(logger.path) == [1, 2, 3]


def test_invalid_utf8_does_not_stop_a_resume(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe\x00')
    MetricsLogger(tmp_path, resume_step=1).close()
    assert steps(tmp_path / "metrics.jsonl") == [1]


def test_progress_yields_every_item_and_prints_plain_lines_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(log.time, "monotonic", lambda: float(next(clock)))
    assert list(progress(range(5), what="batches", every_s=2.0)) == [0, 1, 2, 3, 4]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["batches 2/5 (1.0/s)", "batches 4/5 (1.0/s)"]


def test_progress_accepts_items_without_a_length(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter("ab"), every_s=0.0)) == ["a", "b"]
    assert "2 (" in capsys.readouterr().err


def test_messages_leave_stdout_to_results(capsys: pytest.CaptureFixture[str]) -> None:
    say("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_a_closed_stderr_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as after `blip3o train ... 2>&1 | tee log` and Ctrl-C
    with os.fdopen(writer, "w") as stream, open(os.devnull, "w") as nowhere:
        monkeypatch.setattr(sys, "stderr", stream)
        say("a line")
        assert list(progress(range(3), what="work", every_s=0.0)) == [0, 1, 2]
        os.dup2(nowhere.fileno(), writer)  # for output that is written when it is closed


@pytest.mark.parametrize(
    ("count", "total", "seconds", "shown"),
    [
        (25, 50, 600.0, "24 s each, 10 min left"),
        (1, 4, 15.0, "15 s each, 45 s left"),
        (2, 50, 10.0, "0.2/s, 4 min left"),
        (100, 110, 10.0, "10.0/s"),
        (3, None, 60.0, "20 s each"),
        (5, 5, 0.0, "5000000000.0/s"),
    ],
)
def test_slow_progress_shows_the_seconds_per_item_and_the_remaining_time(
    count: int, total: int | None, seconds: float, shown: str
) -> None:
    assert log._pace(count, total, seconds).endswith(shown)
