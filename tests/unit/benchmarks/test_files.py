"""The files of benchmarks, and the stored results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import options
import pytest
import report
from spreads import RESULTS

TOOLS = {"clocks", "compare", "measure", "options", "report", "run", "spreads"}


def test_every_file_is_a_benchmark_or_a_tool() -> None:
    assert {file.stem for file in options.FOLDER.glob("*.py")} == {*options.NAMES, *TOOLS}


@pytest.mark.slow
@pytest.mark.parametrize("name", options.NAMES)
def test_every_case_runs_in_its_smallest_form(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, str(options.FOLDER / f"{name}.py"), "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text(encoding="utf-8"))
    assert results["benchmark"] == name
    assert results["rows"]


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_stored_results_can_be_read(file: Path) -> None:
    results = json.loads(file.read_text(encoding="utf-8"))
    assert results["benchmark"] == file.stem
    assert results["errors"] == {}
    for case, rows in report.cases_of(results).items():
        assert f"| {rows[-1]['variant']} |" in report.table(case, rows)


def rows_of(work: list[int]) -> list[dict[str, object]]:
    """Returns rows whose wall time grows as work squared and whose CPU time grows as work."""
    return [
        {
            "case": "growing",
            "variant": str(one),
            "unit": "token",
            "work": one,
            "wall_s": dict.fromkeys(("median", "low", "high", "min", "max"), one**2),
            "cpu_s": {"median": one, "low": one / 2, "high": one * 2, "min": 0, "max": 9},
            "rate": dict.fromkeys(("median", "low", "high", "min", "max"), 1 / one),
            "figures": {"median_latency_s": {"median": 0.5}},
        }
        for one in work
    ]


def test_tables_have_the_figures_and_the_exponents_of_growing_work() -> None:
    lines = report.table("growing", rows_of([2, 4, 8])).splitlines()
    assert lines[2] == "| variant | work | wall_s | cpu_s | token/s | median_latency_s |"
    assert lines[4] == "| 2 | 2 | 4 | 2 (1 to 4) | 0.5 | 0.5 |"
    cases = {"growing": rows_of([2, 4, 8]), "other": rows_of([2, 4])}
    assert report.exponents(cases).splitlines()[2:] == [
        "| growing | 2, 4, 8 tokens | 2, 4, 8 "
        "| 2.00 ± 0.00, last two sizes 2.00 | 1.00 ± 0.00, last two sizes 1.00 |"
    ]
    assert report.exponents({"other": rows_of([2, 4])}) == ""


def test_a_plot_shows_growing_and_other_cases(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    bars = [{**row, "case": "bars"} for row in rows_of([1, 1])]
    report.draw({"rows": rows_of([2, 4, 8]) + bars}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
