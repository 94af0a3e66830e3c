"""The runner of benchmarks: statistics, turns, checks, CPU time and the form of results."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import measure
import pytest
import torch
from measure import Case, Options
from spreads import exponent, spread

QUICK = Options(rounds=3, device=torch.device("cpu"), is_quick=True)
BURN = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ninput()"


def test_a_spread_has_median_quartiles_and_extremes() -> None:
    assert spread([5, 1, 4, 2, 3]) == {"median": 3, "low": 2, "high": 4, "min": 1, "max": 5}
    assert set(spread([0.5]).values()) == {0.5}


def test_an_exponent_is_the_slope_in_log_log_with_its_standard_error() -> None:
    assert exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx((2, 0), abs=1e-12)
    # log2 of the cost is 0, 1, 0 at 0, 1, 2: slope 0, residuals -1/3, 2/3, -1/3
    slope, error = exponent([1, 2, 4], [1, 2, 1])
    assert slope == pytest.approx(0, abs=1e-12)
    assert error == pytest.approx((6 / 9 / 1 / 2) ** 0.5)
    with pytest.raises(ValueError, match="three points"):
        exponent([1, 2], [1, 2])


def note(log: list[str], name: str) -> Callable[[], str]:
    """Returns work that writes its name down and returns it."""

    def work() -> str:
        log.append(name)
        return name

    return work


def test_variants_take_turns_and_every_second_round_is_reversed() -> None:
    log: list[str] = []
    variants = {name: note(log, name) for name in "ab"}
    measure.measure("case", Case(unit="run", variants=variants), QUICK)
    assert "".join(log) == "ab" + "ab" + "ba" + "ab"
    log.clear()
    measure.measure("case", Case(unit="run", variants=variants, is_long=True, most_rounds=1), QUICK)
    assert "".join(log) == "ab", "the only round of long work is its warm-up"


def test_a_row_has_times_rate_speedup_difference_figures_and_facts() -> None:
    case = Case(
        unit="image",
        work={"plain": 4, "fast": 8},
        variants={"plain": lambda: 1.0, "fast": lambda: 1.5},
        difference=lambda one, other: abs(one - other),
        tolerance=0.5,
        figures=lambda output: {"output": output},
        facts={"steps": 2},
        has_memory=True,
    )
    plain, fast = measure.measure("case", case, QUICK)
    assert (plain["case"], plain["variant"], plain["unit"]) == ("case", "plain", "image")
    assert (plain["work"], fast["work"], fast["rounds"]) == (4, 8, 3)
    assert (plain["difference"], fast["difference"]) == (0, 0.5)
    assert fast["figures"] == {"output": spread([1.5])}
    assert fast["facts"] == {"steps": 2}
    assert fast.keys() - plain.keys() == {"speedup", "cpu_speedup"}
    spreads = [fast[name] for name in ("wall_s", "cpu_s", "rate", "speedup", "cpu_speedup")]
    assert all(set(one) == {"median", "low", "high", "min", "max"} for one in spreads)
    if sys.platform == "linux":
        assert fast["peak_mb"]["min"] > 1


@pytest.mark.parametrize("is_long", [False, True])
def test_a_variant_that_differs_from_the_first_stops_the_case(is_long: bool) -> None:
    case = Case(
        unit="run",
        variants={"plain": lambda: 1.0, "fast": lambda: float("nan")},
        difference=lambda one, other: abs(one - other),
        tolerance=0.5,
        is_long=is_long,
    )
    with pytest.raises(ValueError, match="fast differs from plain by nan"):
        measure.measure("case", case, QUICK)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_cpu_time_counts_processes_below_this_one() -> None:
    started: list[subprocess.Popen[str]] = []

    def burn(is_kept: bool) -> None:
        child = subprocess.Popen(
            [sys.executable, "-c", BURN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        child.stdout.readline()
        if is_kept:
            started.append(child)
        else:
            child.communicate("\n")

    case = Case(
        unit="run",
        variants={"running": lambda: burn(True), "ended": lambda: burn(False)},
        is_long=True,
        most_rounds=1,
    )
    try:
        rows = measure.measure("case", case, QUICK)
    finally:
        for child in started:
            child.communicate("\n")
    assert [row["cpu_s"]["median"] > 0.15 for row in rows] == [True, True]


def good(options: Options) -> Iterator[Case]:
    yield Case(unit="run", variants={"only": lambda: None})


def bad(options: Options) -> Iterator[Case]:
    raise ImportError("an old commit has no such function")
    yield


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Returns the exit status of a benchmark of two cases."""
    monkeypatch.setattr(sys, "argv", ["benchmarks/fake.py", *words])
    with pytest.raises(SystemExit) as ended:
        measure.main("Two cases.", {"good": good, "bad": bad})
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_results_name_machine_commit_command_and_the_cases_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "fake.json"
    assert call(monkeypatch, "--rounds", "2", "--threads", "1", "--out", str(out)) == 1
    results = json.loads(out.read_text(encoding="utf-8"))
    assert results["benchmark"] == "fake"
    assert results["command"].startswith("python benchmarks/fake.py --rounds 2")
    assert results["date"].endswith("+00:00")
    assert results.keys() >= {"commit", "is_dirty"}
    assert results["machine"].keys() >= {
        "cpu",
        "cores",
        "instruction_sets",
        "memory_gb",
        "torch",
        "threads",
        "load_average",
    }
    assert [row["case"] for row in results["rows"]] == ["good"]
    assert results["rows"][0]["rounds"] == 2
    assert results["errors"] == {"bad": "ImportError: an old commit has no such function"}
    assert "good only" in " ".join(capsys.readouterr().out.split())


def test_single_cases_and_quick_runs_overwrite_no_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    assert call(monkeypatch, "good", "--rounds", "1") == 0
    assert call(monkeypatch, "--quick") == 1
    assert not list(tmp_path.iterdir())
    assert call(monkeypatch, "--rounds", "1") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["fake.json"]
    assert call(monkeypatch, "god") == 2
    assert "fake has no case god; it has good, bad" in capsys.readouterr().err
