"""Plots the metrics of a run."""

import json
from pathlib import Path

from blip3o.core.files import atomic_file

_SHOWN = ("loss", "lr", "grad_norm", "samples_per_second")
_HIDDEN = ("step", "samples_seen", "data_wait", "nonfinite_steps", "memory_mb")


def draw_curves(run_dir: Path) -> Path | None:
    """Plots a run folder's `metrics.jsonl` to `curves.png`; returns its path.

    Returns None without matplotlib or without metrics.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    if not rows:
        return None
    extra = [name for name in rows[-1] if name not in (*_SHOWN, *_HIDDEN) and "/" in name]
    names = [name for name in (*_SHOWN, *extra) if name in rows[-1]]
    columns = 3
    height = (len(names) + columns - 1) // columns
    figure = Figure(figsize=(4.5 * columns, 2.8 * height))
    # Fixed margins: matplotlib's automatic layouts take longer than all the plotting.
    figure.subplots_adjust(
        left=0.05, right=0.99, bottom=0.25 / height, top=1 - 0.25 / height, wspace=0.2, hspace=0.35
    )
    for number, name in enumerate(names):
        axes = figure.add_subplot(height, columns, number + 1)
        points = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot([step for step, _ in points], [value for _, value in points], linewidth=1)
        axes.set_title(name, fontsize=9)
        axes.grid(alpha=0.3)
    file = run_dir / "curves.png"
    with atomic_file(file) as scratch:
        figure.savefig(scratch, dpi=80, format="png")
    return file
