"""Prints the tables of results and draws their plots.

    python benchmarks/report.py [NAME | FILE.json ...] [--out FOLDER]

The plot of each file of results is FOLDER/NAME.png, by default beside the file. Cases of three or
more sizes are drawn as cost against work, and the last table has the exponents of their cost; the
others are drawn as bars of their rate, with quartiles.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spreads import RESULTS, Row, exponent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLOCKS = {"wall_s": "wall time", "cpu_s": "CPU time"}
COLUMNS = ("work", "wall_s", "cpu_s", "rate", "speedup", "cpu_speedup", "peak_mb")


def cases_of(results: dict[str, Any]) -> dict[str, list[Row]]:
    """Returns the rows of each case."""
    return {name: list(rows) for name, rows in groupby(results["rows"], lambda row: row["case"])}


def is_growing(rows: Sequence[Row]) -> bool:
    """Returns whether the rows are sizes of the same work, to which an exponent can be fitted."""
    return len({row.get("work") for row in rows}) > 2


def table(name: str, rows: Sequence[Row]) -> str:
    """Returns the Markdown table of a case."""
    flat = [{**row, **row.get("figures", {})} for row in rows]
    columns = [*COLUMNS, *rows[0].get("figures", {})]
    columns = [column for column in columns if any(column in row for row in flat)]
    titles = [f"{rows[0]['unit']}/s" if one == "rate" else one for one in columns]
    lines = [f"**{name}**", "", f"| variant | {' | '.join(titles)} |", "|---" * (len(columns) + 1)]
    lines[-1] += "|"
    for row in flat:
        cells = [_cell(row[column]) if column in row else "" for column in columns]
        lines.append(f"| {row['variant']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def exponents(cases: Mapping[str, Sequence[Row]]) -> str:
    """Returns the Markdown table of the cost of growing cases and its exponents; may be empty."""
    lines = []
    for name, rows in cases.items():
        if is_growing(rows):
            work = ", ".join(f"{row['work']:g}" for row in rows)
            cost = ", ".join(f"{row['cpu_s']['median']:.3g}" for row in rows)
            fits = " | ".join(_fit(rows, clock) for clock in CLOCKS)
            lines.append(f"| {name} | {work} {rows[0]['unit']}s | {cost} | {fits} |")
    heads = " | ".join(f"exponent of {label}" for label in CLOCKS.values())
    head = [f"| case | work | CPU seconds | {heads} |", "|---" * (3 + len(CLOCKS)) + "|"]
    return "\n".join([*head, *lines] if lines else [])


def _cell(value: float | dict[str, float]) -> str:
    if not isinstance(value, dict):
        return f"{value:g}"
    low, high = value.get("low", value.get("min")), value.get("high", value.get("max"))
    is_spread = low is not None and high is not None and low != high
    return f"{value['median']:.4g}" + (f" ({low:.4g} to {high:.4g})" if is_spread else "")


def _fit(rows: Sequence[Row], clock: str) -> str:
    """Returns the exponent of a cost over all sizes, and over the last two."""
    work, cost = [row["work"] for row in rows], [row[clock]["median"] for row in rows]
    slope, error = exponent(work, cost)
    last = math.log(cost[-1] / cost[-2]) / math.log(work[-1] / work[-2])
    return f"{slope:.2f} ± {error:.2f}, last two sizes {last:.2f}"


def draw(results: dict[str, Any], file: Path) -> None:
    """Draws all cases as a PNG file; cases of an older form without rates are left out."""
    from matplotlib.figure import Figure

    cases = {name: rows for name, rows in cases_of(results).items() if "rate" in rows[0]}
    if not cases:
        return
    num_columns = min(3, len(cases))
    num_rows = -(-len(cases) // num_columns)
    figure = Figure(figsize=(4.5 * num_columns, 3 * num_rows))
    for number, (name, rows) in enumerate(cases.items(), 1):
        axes = figure.add_subplot(num_rows, num_columns, number)
        (_draw_growing if is_growing(rows) else _draw_bars)(axes, rows)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=90, metadata={"Software": None})


def _draw_growing(axes: "Axes", rows: Sequence[Row]) -> None:
    work = [row["work"] for row in rows]
    for clock, label in CLOCKS.items():
        median = [row[clock]["median"] for row in rows]
        shown = f"{label}: exponent {exponent(work, median)[0]:.2f}"
        (line,) = axes.plot(work, median, marker="o", markersize=3, label=shown)
        low, high = ([row[clock][end] for row in rows] for end in ("low", "high"))
        axes.fill_between(work, low, high, color=line.get_color(), alpha=0.2)
    linear = [median[0] * one / work[0] for one in work]
    axes.plot(work, linear, color="gray", linestyle=":", label="linear")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(f"{rows[0]['unit']}s", fontsize=8)
    axes.set_ylabel("seconds", fontsize=8)
    axes.legend(fontsize=7)


def _draw_bars(axes: "Axes", rows: Sequence[Row]) -> None:
    names = [row["variant"] for row in rows]
    rates = [row["rate"] for row in rows]
    medians = [rate["median"] for rate in rates]
    ends = [(rate.get("low", rate["min"]), rate.get("high", rate["max"])) for rate in rates]
    errors = [
        [median - low for median, (low, _) in zip(medians, ends, strict=True)],
        [high - median for median, (_, high) in zip(medians, ends, strict=True)],
    ]
    axes.barh(names, medians, xerr=errors, color=[f"C{number}" for number in range(len(rows))])
    axes.invert_yaxis()
    axes.set_xlabel(f"{rows[0]['unit']}s a second", fontsize=8)


def main() -> None:
    """Prints the tables and writes the plots of the named results; of all by default."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--out", type=Path, help="folder of the plots")
    given = parser.parse_args()
    for name in given.names or sorted(file.stem for file in RESULTS.glob("*.json")):
        file = Path(name) if name.endswith(".json") else RESULTS / f"{name}.json"
        results = json.loads(file.read_text(encoding="utf-8"))
        print(f"# {results['benchmark']}: {results['command']}, commit {results['commit'][:7]}\n")
        for case, rows in cases_of(results).items():
            print(table(case, rows), end="\n\n")
        print(exponents(cases_of(results)))
        draw(results, (given.out or file.parent) / f"{file.stem}.png")


if __name__ == "__main__":
    main()
