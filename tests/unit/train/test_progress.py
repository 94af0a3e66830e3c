"""Metrics and progress of a run."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from blip3o.train.progress import RunLog, Window

VALUES = {"loss": 0.25, "lr": 1e-3, "samples_per_second": 8.0}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_without_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    log = RunLog(tmp_path, 10, 1000, 8)
    log.advance()
    log.log(VALUES)
    log.log({"lr": 0.0, "samples_per_second": 1.0})  # no step was finite
    log.close()
    first, second = stream.getvalue().splitlines()
    assert first == "step 11/1000  loss 0.2500  lr 1.0e-03  8.0 samples/s  17 min left"
    assert "loss nan" in second
    assert "2 h 12 min left" in second


def test_a_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    log = RunLog(tmp_path, 10, 20, 8)
    log.advance()
    log.log(VALUES)
    log.close()
    shown = terminal.getvalue()
    assert "11/20" in shown
    assert "loss 0.2500" in shown
    assert "8.0 samples/s" in shown


def test_a_window_averages_by_count_and_continues_from_stored_sums() -> None:
    stored: dict[str, Any] = {"loss": (3.0, 1.0)}
    window = Window(stored)
    window.add({"loss": (1.0, 1.0), "loss/part": (6.0, 12.0), "none": (0.0, 0.0)}, 4, 50, 0.0)
    assert stored["loss"] == (4.0, 2.0)
    values = window.close()
    assert (values["loss"], values["loss/part"], values["none"]) == (2.0, 0.5, 0.0)
    assert values["samples_per_second"] > 0
    assert values["busy_cores"] >= 0
    assert values["data_wait"] == 0
    assert stored == {}
    assert "loss" not in window.close()


def test_a_window_reports_operations_per_second_and_their_share_of_the_peak() -> None:
    window = Window({}, peak_tflops=2.0)
    window.add({}, 4, 50, 0.0)
    assert "tflops" not in window.close()
    window.flops_per_token = 1e6
    window.add({}, 4, 50, 0.0)
    values = window.close()
    assert values["tflops"] == pytest.approx(values["tokens_per_second"] * 1e-6)
    assert values["mfu"] == pytest.approx(values["tflops"] / 2)
