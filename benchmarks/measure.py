"""Runs the variants of some work in turn and writes one form of result.

A benchmark is a file of cases. A case is a generator function that prepares the work, yields one
`Case`, and cleans up:

    def reading(options: Options) -> Iterator[Case]:
        with tempfile.TemporaryDirectory() as folder:
            yield Case(unit="record", work=100, variants={"plain": read_plain, "fast": read_fast})

    if __name__ == "__main__":
        main(__doc__, {"reading": reading})

Every variant first runs once without being measured, and its output is compared with that of the
first variant. Then each round runs all variants, every second round in reverse order, so that a
temporary slowdown of the machine affects all of them. CPU time is that of this process and of all
processes below it. Speedups are ratios of rates within one round.
"""

import argparse
import contextlib
import dataclasses
import datetime
import gc
import json
import math
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

import blip3o

RESULTS = Path(__file__).parent / "results"
_LEAST_S = 0.1
"""Shorter work is repeated within a measurement."""
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve")

Spread = dict[str, float]
Row = dict[str, Any]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a benchmark.

    Args:
        rounds: measured runs of every variant.
        device: device of the models.
        is_quick: whether to use the smallest sizes, which only show that the benchmark works.
    """

    rounds: int
    device: torch.device
    is_quick: bool

    def pick(self, full: T, quick: T) -> T:
        """Returns the size to use."""
        return quick if self.is_quick else full


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Variants of the same work.

    Args:
        variants: the work by name; the others are compared with the first.
        unit: unit of the work, a singular noun.
        work: units of work of one run; a mapping for variants that differ.
        difference: distance between the outputs of the first and of another variant.
        tolerance: largest allowed distance.
        figures: further measurements of a run, taken from its output.
        facts: settings and sizes that belong to the results.
        has_memory: whether to record the peak memory of this process.
        is_long: whether the first measured run of each variant is also its warm-up.
        most_rounds: limit of the rounds of long work.
    """

    variants: Mapping[str, Callable[[], Any]]
    unit: str
    work: float | Mapping[str, float] = 1.0
    difference: Callable[[Any, Any], float] | None = None
    tolerance: float = 0.0
    figures: Callable[[Any], Mapping[str, float]] | None = None
    facts: Mapping[str, object] = dataclasses.field(default_factory=dict)
    has_memory: bool = False
    is_long: bool = False
    most_rounds: int | None = None

    def work_of(self, variant: str) -> float:
        """Returns the units of work of a variant."""
        return self.work[variant] if isinstance(self.work, Mapping) else self.work


CaseFunction = Callable[[Options], Iterator[Case]]


class Run(NamedTuple):
    """One measured run: its output, seconds, and peak memory in MB (None if it is unknown)."""

    output: Any
    wall_s: float
    cpu_s: float
    peak_mb: float | None


def measure(name: str, case: Case, options: Options) -> list[Row]:
    """Returns one row of results for each variant of a case.

    Raises:
        ValueError: if a variant differs from the first by more than the tolerance.
    """
    names = list(case.variants)
    calls, first, differences = dict.fromkeys(names, 1), dict[str, Any](), dict[str, float]()
    if not case.is_long:
        for variant in names:
            warm = _run(case.variants[variant], 1, options.device)
            first[variant] = warm.output
            if not options.is_quick:
                calls[variant] = max(1, math.ceil(_LEAST_S / warm.wall_s))
        differences = _check(case, first)
    runs: dict[str, list[Run]] = {variant: [] for variant in names}
    for turn in range(min(options.rounds, case.most_rounds or options.rounds)):
        for variant in reversed(names) if turn % 2 else names:
            run = _run(case.variants[variant], calls[variant], options.device)
            runs[variant].append(run)
            first.setdefault(variant, run.output)
    if case.is_long:
        differences = _check(case, first)
    rates = {
        clock: {
            variant: [case.work_of(variant) / max(getattr(run, clock), 1e-9) for run in some]
            for variant, some in runs.items()
        }
        for clock in ("wall_s", "cpu_s")
    }
    rows = []
    for variant, some in runs.items():
        row: Row = {"case": name, "variant": variant, "unit": case.unit}
        row |= {"work": case.work_of(variant), "rounds": len(some)}
        row["wall_s"] = spread([run.wall_s for run in some])
        row["cpu_s"] = spread([run.cpu_s for run in some])
        row["rate"] = spread(rates["wall_s"][variant])
        if variant != names[0]:
            for key, clock in (("speedup", "wall_s"), ("cpu_speedup", "cpu_s")):
                pairs = zip(rates[clock][variant], rates[clock][names[0]], strict=True)
                row[key] = spread([own / other for own, other in pairs])
        if variant in differences:
            row["difference"] = differences[variant]
        peaks = [run.peak_mb for run in some if run.peak_mb is not None]
        if case.has_memory and peaks:
            row["peak_mb"] = spread(peaks)
        if case.figures is not None:
            figures = [case.figures(run.output) for run in some]
            row["figures"] = {key: spread([one[key] for one in figures]) for key in figures[0]}
        if case.facts:
            row["facts"] = dict(case.facts)
        rows.append(row)
    return rows


def _check(case: Case, outputs: Mapping[str, Any]) -> dict[str, float]:
    """Returns the difference of each variant from the first."""
    if case.difference is None:
        return {}
    expected, *_ = outputs.values()
    found = {name: case.difference(expected, output) for name, output in outputs.items()}
    for name, distance in found.items():
        if not distance <= case.tolerance:
            raise ValueError(
                f"{name} differs from {next(iter(outputs))} by {distance:.3g}, more than "
                f"{case.tolerance:.3g}"
            )
    return found


def spread(values: Sequence[float]) -> Spread:
    """Returns median, quartiles (low, high) and extremes of measurements."""
    several = [*values, *values] if len(values) == 1 else values
    low, median, high = statistics.quantiles(several, n=4, method="inclusive")
    numbers = {"median": median, "low": low, "high": high, "min": min(values), "max": max(values)}
    return {name: float(f"{number:.6g}") for name, number in numbers.items()}


def exponent(work: Sequence[float], cost: Sequence[float]) -> tuple[float, float]:
    """Returns the exponent e of cost ~ work ** e, fitted in log-log, and its standard error.

    Raises:
        ValueError: if there are fewer than three points.
    """
    if len(work) < 3:
        raise ValueError(f"an exponent with its error needs three points, got {len(work)}")
    x, y = [math.log(one) for one in work], [math.log(one) for one in cost]
    slope, start = statistics.linear_regression(x, y)
    rest = sum((b - start - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    width = sum((a - statistics.fmean(x)) ** 2 for a in x)
    return slope, math.sqrt(rest / (len(x) - 2) / width)


# ---------------------------------------------------------------------------------------------
# Clocks


def _run(work: Callable[[], Any], calls: int, device: torch.device) -> Run:
    gc.collect()
    _reset_peak(device)
    _wait(device)
    output = None
    others, own, start = _others_cpu_s(), _own_cpu_s(), time.perf_counter()
    for _ in range(calls):
        output = work()
    _wait(device)
    wall = time.perf_counter() - start
    cpu = _own_cpu_s() - own + _others_cpu_s() - others
    return Run(output, wall / calls, cpu / calls, _peak_mb(device))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _own_cpu_s() -> float:
    """Returns the CPU seconds of this process and of those below it that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _others_cpu_s() -> float:
    """Returns the CPU seconds of the running processes below this one; 0 if not on Linux."""
    ticks, pids = 0, [os.getpid()]
    while pids:
        pid = pids.pop()
        with contextlib.suppress(OSError):  # it has ended
            if pid != os.getpid():
                stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
                ticks += sum(map(int, stat.rpartition(")")[2].split()[11:15]))
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
    return ticks / os.sysconf("SC_CLK_TCK")


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _peak_mb(device: torch.device) -> float | None:
    """Returns the peak memory since the reset: of torch on a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    found = re.search(r"VmHWM:\s+(\d+) kB", _read("/proc/self/status"))
    return int(found[1]) / 1024 if found else None


# ---------------------------------------------------------------------------------------------
# Results


def machine(device: torch.device) -> dict[str, object]:
    """Returns a description of this machine."""
    info = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)$", info, re.M)
    flags = set(info.split())
    found: dict[str, object] = {
        "cpu": model[1] if model else platform.processor(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "instruction_sets": [name for name in _INSTRUCTION_SETS if name in flags],
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def source() -> dict[str, object]:
    """Returns the commit of the measured package, and whether its files differ from the commit."""
    folder = Path(blip3o.__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return {"commit": git("rev-parse", "HEAD"), "is_dirty": bool(git("status", "-s", "--", "."))}


def describe(row: Row) -> str:
    """Returns one line about a row."""
    parts = [f"{row['case']:>22} {row['variant']:<16}"]
    for name in ("wall_s", "cpu_s"):
        parts.append(f"{name} {row[name]['median']:.4g} ({_range(row[name])})")
    parts.append(f"{row['rate']['median']:.4g} {row['unit']}/s")
    if "speedup" in row:
        parts.append(f"x{row['speedup']['median']:.2f} ({_range(row['speedup'])})")
    parts += [f"{name} {one['median']:.4g}" for name, one in row.get("figures", {}).items()]
    return "  ".join(parts)


def _range(one: Spread) -> str:
    return f"{one['low']:.4g} to {one['high']:.4g}"


def main(about: str | None, cases: Mapping[str, CaseFunction]) -> None:
    """Measures cases, prints the rows and writes the results; for the end of a benchmark's file.

    A case that fails is reported with its traceback; the others run, and the exit status is 1.

    Args:
        about: the module's docstring.
        cases: the cases by name.
    """
    name = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: {' '.join(cases)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, one round")
    parser.add_argument(
        "--out", type=Path, help=f"default: benchmarks/results/{name}.json, for all cases only"
    )
    given = parser.parse_args()
    if unknown := set(given.cases) - set(cases):
        parser.error(f"{name} has no case {', '.join(sorted(unknown))}; it has {', '.join(cases)}")
    torch.set_num_threads(given.threads)
    options = Options(
        rounds=1 if given.quick else given.rounds, device=given.device, is_quick=given.quick
    )
    results: dict[str, Any] = {
        "benchmark": name,
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **source(),
        "machine": machine(options.device),
        "rows": [],
        "errors": {},
    }
    for one in given.cases or cases:
        try:
            with contextlib.contextmanager(cases[one])(options) as case:
                rows = measure(one, case, options)
        except Exception as error:  # noqa: BLE001  # an old commit may lack what one case needs
            traceback.print_exc()
            results["errors"][one] = f"{type(error).__name__}: {error}"
            continue
        results["rows"] += rows
        print("\n".join(map(describe, rows)), flush=True)
    if given.out or not (given.cases or given.quick):
        file = given.out or RESULTS / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(file)
    sys.exit(bool(results["errors"]))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
