"""The images of a report: curves, and sample images of all arms side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from blip3o.core.files import atomic_file
from blip3o.imaging.sheet import contact_sheet
from blip3o.study.results import Point, Result

_AXES = {
    "samples": "samples",
    "cpu_seconds": "CPU seconds",
    "flops": "operations",
}
"""Fields of a point that the curves are drawn against, and their labels."""
_SHOWN = ("scenes", "questions")


def draw_curves(arms: Mapping[str, Sequence[Result]], file: Path) -> bool:
    """Draws the curves of all arms; returns whether there is matplotlib and a curve to draw.

    The line of an arm is the mean over its seeds; a thin line shows each seed.

    Args:
        arms: finished runs by the title of their arm.
        file: the PNG file to write.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    points = [point for runs in arms.values() for run in runs for point in run.points]
    names = [name for name in _SHOWN if any(name in point.scores for point in points)]
    if not names:
        return False
    figure = Figure(figsize=(4.5 * len(_AXES), 3.2 * len(names)))
    grid = figure.subplots(len(names), len(_AXES), squeeze=False)
    for row, name in zip(grid, names, strict=True):
        for axes, (field, label) in zip(row, _AXES.items(), strict=True):
            for number, (title, runs) in enumerate(arms.items()):
                lines = [_line(run.points, field, name) for run in runs]
                for line in lines:
                    axes.plot(*line, color=f"C{number}", linewidth=0.5, alpha=0.5)
                if lines:
                    mean = np.mean(lines, axis=0)
                    axes.plot(*mean, color=f"C{number}", marker="o", markersize=3, label=title)
            axes.set_xlabel(label, fontsize=9)
            axes.set_ylabel(name, fontsize=9)
            axes.grid(alpha=0.3)
            axes.locator_params(axis="x", nbins=5)  # more labels would overlap
    grid[0][0].legend(fontsize=7)
    figure.tight_layout()
    with atomic_file(file, is_shared=True) as scratch:
        figure.savefig(scratch, dpi=90, format="png", metadata={"Software": None})
    return True


def _line(points: Sequence[Point], field: str, score: str) -> np.ndarray:
    """Returns the coordinates [2, points] of a curve."""
    shown = [point for point in points if score in point.scores]
    return np.array([[getattr(p, field) for p in shown], [p.scores[score] for p in shown]])


def draw_samples(rows: Mapping[str, Path], prompts: Sequence[str], file: Path) -> bool:
    """Draws the sample images of the arms that have them; returns whether there are any.

    Args:
        rows: folders of sample images by the title of their arm.
        prompts: prompts of the images.
        file: the PNG file to write.
    """
    images: list[Image.Image] = []
    captions: list[str] = []
    for title, folder in rows.items():
        files = [folder / f"{number:02d}.png" for number in range(len(prompts))]
        if all(file.exists() for file in files):
            images += [Image.open(file).convert("RGB") for file in files]
            captions += [f"{title}: {prompt}" for prompt in prompts]
    if not images:
        return False
    with atomic_file(file, is_shared=True) as scratch:
        contact_sheet(images, captions, columns=len(prompts)).save(scratch, "PNG")
    return True
