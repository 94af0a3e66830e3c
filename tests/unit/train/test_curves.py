"""The plot of a run's metrics."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from blip3o.train.curves import draw_curves


def test_curves_are_plotted_and_a_truncated_line_is_skipped(tmp_path: Path) -> None:
    rows = [{"step": n, "loss": 1 / n, "lr": 0.1, "A/loss": 1.0, "A/b": n} for n in range(1, 9)]
    del rows[3]["loss"]  # a window without a finite step
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    path = draw_curves(tmp_path)
    assert path == tmp_path / "curves.png"
    assert Image.open(tmp_path / "curves.png").size[0] > 500


def test_without_metrics_there_is_no_plot(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    assert draw_curves(tmp_path) is None
    assert not (tmp_path / "curves.png").exists()


def test_a_full_disk_keeps_the_earlier_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(self: Figure, file: Any, **options: Any) -> None:
        Path(file).write_bytes(b"half of an image")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    assert draw_curves(tmp_path) == tmp_path / "curves.png"
    before = (tmp_path / "curves.png").read_bytes()
    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match=r"No space left.*curves\.png"):
        draw_curves(tmp_path)
    assert [file.name for file in tmp_path.iterdir() if "curves" in file.name] == ["curves.png"]
    assert (tmp_path / "curves.png").read_bytes() == before
