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
import json
import math
import os
import platform
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from clocks import Run, read_file, run
from options import add_options
from spreads import RESULTS, Row, Spread, spread

import blip3o

_LEAST_S = 0.1
"""Shorter work is repeated within a measurement."""
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve")

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


def measure(name: str, case: Case, options: Options) -> list[Row]:
    """Returns one row of results for each variant of a case.

    Raises:
        ValueError: if a variant differs from the first by more than the tolerance.
    """
    names, differences = list(case.variants), dict[str, float]()
    calls, outputs = dict.fromkeys(names, 1), dict[str, Any]()
    if not case.is_long:
        for variant in names:
            warm = run(case.variants[variant], 1, options.device)
            outputs[variant] = warm.output
            if not options.is_quick:
                calls[variant] = max(1, math.ceil(_LEAST_S / warm.wall_s))
        differences = _check(case, outputs)
        outputs.clear()
    runs: dict[str, list[Run]] = {variant: [] for variant in names}
    for turn in range(min(options.rounds, case.most_rounds or options.rounds)):
        for variant in reversed(names) if turn % 2 else names:
            one = run(case.variants[variant], calls[variant], options.device)
            if case.is_long and turn == 0:
                outputs[variant] = one.output
            figures = case.figures(one.output) if case.figures else {}
            runs[variant].append(one._replace(output=None, figures=figures))
    if case.is_long:
        differences = _check(case, outputs)
    rows = [_row(case, variant, runs) for variant in names]
    rows = [{"case": name, **row, "difference": differences.get(row["variant"])} for row in rows]
    return [{key: value for key, value in row.items() if value not in (None, {})} for row in rows]


def _row(case: Case, variant: str, runs: Mapping[str, list[Run]]) -> Row:
    """Returns a row; fields that the case does not have are None or empty."""
    own, first = runs[variant], next(iter(runs))

    def rates(name: str, clock: str) -> list[float]:
        return [case.work_of(name) / max(getattr(run, clock), 1e-9) for run in runs[name]]

    def speedup(clock: str) -> Spread | None:
        pairs = zip(rates(variant, clock), rates(first, clock), strict=True)
        return None if variant == first else spread([one / plain for one, plain in pairs])

    peaks = [run.peak_mb for run in own if run.peak_mb is not None]
    return {
        "variant": variant,
        "unit": case.unit,
        "work": case.work_of(variant),
        "rounds": len(own),
        "wall_s": spread([run.wall_s for run in own]),
        "cpu_s": spread([run.cpu_s for run in own]),
        "rate": spread(rates(variant, "wall_s")),
        "speedup": speedup("wall_s"),
        "cpu_speedup": speedup("cpu_s"),
        "peak_mb": spread(peaks) if case.has_memory and peaks else None,
        "figures": {key: spread([run.figures[key] for run in own]) for key in own[0].figures},
        "facts": dict(case.facts),
    }


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


# ---------------------------------------------------------------------------------------------
# Results


def machine(device: torch.device) -> dict[str, object]:
    """Returns a description of this machine."""
    info = read_file("/proc/cpuinfo")
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
    add_options(parser)
    parser.add_argument(
        "--out", type=Path, help=f"default: benchmarks/results/{name}.json, for all cases only"
    )
    given = parser.parse_args()
    if unknown := set(given.cases) - set(cases):
        parser.error(f"{name} has no case {', '.join(sorted(unknown))}; it has {', '.join(cases)}")
    if given.threads:
        torch.set_num_threads(given.threads)
    options = Options(
        rounds=1 if given.quick else given.rounds,
        device=torch.device(given.device),
        is_quick=given.quick,
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
