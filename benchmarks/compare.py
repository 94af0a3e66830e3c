"""Compares the speed of two commits by the benchmarks of this folder.

    python benchmarks/compare.py OLD NEW [NAME[/CASE] ...] [--pairs N] [--rounds N] [--threads N]
        [--device D] [--quick]

Each commit is checked out in a temporary folder, and processes of the two take turns. Both run
these benchmark files, each with the package of its commit; a case that a commit cannot run is named
with the reason. A ratio is the time of NEW over that of OLD in one pair of processes. The table has
its median and its extremes. A difference counts as larger than the noise if all pairs are on one
side of 1: without any difference, that happens once in 2 ** (pairs - 1) times, 1 of 32 for six.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from options import FOLDER, add_names, add_options, commands
from spreads import spread

CLOCKS = {"wall_s": "wall time", "cpu_s": "CPU time"}
Key = tuple[str, str, str]
"""Benchmark, case and variant."""


@contextlib.contextmanager
def checkouts(repository: Path, commits: Sequence[str]) -> Iterator[list[Path]]:
    """Checks out commits in temporary folders, which are removed with the context.

    Raises:
        SystemExit: if a commit does not exist.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(repository), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"compare: {done.stderr.strip()}")
        return done.stdout.strip()

    hashes = [git("rev-parse", "--verify", f"{commit}^{{commit}}") for commit in commits]
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / side for side in ("old", "new")]
        try:
            for folder, commit in zip(folders, hashes, strict=True):
                git("worktree", "add", "--detach", str(folder), commit)
            yield folders
        finally:
            for folder in filter(Path.exists, folders):
                git("worktree", "remove", "--force", str(folder))


def run(words: Sequence[str], checkout: Path, out: Path) -> dict[str, Any]:
    """Runs a benchmark with the package of a checkout and returns its results.

    Args:
        words: the benchmark's file, its cases and options.
        checkout: the folder of the commit.
        out: file for the results; replaced.

    Returns:
        The results; `errors` has a single entry, of no case, if the benchmark did not start.
    """
    out.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    done = subprocess.run(
        [sys.executable, *words, "--out", str(out)],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if out.exists():
        return json.loads(out.read_text(encoding="utf-8"))
    return {"rows": [], "errors": {"": (done.stderr.strip().splitlines() or ["no results"])[-1]}}


def ratio_line(key: Key, old: Sequence[dict[str, float]], new: Sequence[dict[str, float]]) -> str:
    """Returns a line of the table.

    Args:
        key: the measured work.
        old: median seconds by clock, one for each pair.
        new: the same of the other commit.
    """
    cells = []
    for clock in CLOCKS:
        ratios = [b[clock] / max(a[clock], 1e-9) for a, b in zip(old, new, strict=True)]
        one = spread(ratios)
        verdict = "faster" if one["max"] < 1 else "slower" if one["min"] > 1 else "within noise"
        times = [spread([side[clock] for side in some])["median"] for some in (old, new)]
        cells += [f"{times[0]:.4g}", f"{times[1]:.4g}"]
        cells += [f"{one['median']:.3f} ({one['min']:.3f} to {one['max']:.3f})", verdict]
    return f"| {'/'.join(key[:2])} {key[2]} | {' | '.join(cells)} |"


def main() -> None:
    """Prints the table and the cases that a commit cannot run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", metavar="OLD")
    parser.add_argument("new", metavar="NEW")
    add_names(parser)
    parser.add_argument("--pairs", type=int, default=6)
    add_options(parser, rounds=3)
    given = parser.parse_args()
    times: dict[Key, tuple[list[dict[str, float]], list[dict[str, float]]]] = {}
    errors: dict[str, None] = {}
    commits, benchmarks = (given.old, given.new), commands(parser, given)
    with (
        tempfile.TemporaryDirectory() as scratch,
        checkouts(FOLDER.parent, commits) as folders,
    ):
        for words in benchmarks:
            name = Path(words[0]).stem
            for pair in range(given.pairs):
                for side in reversed((0, 1)) if pair % 2 else (0, 1):
                    found = run(words, folders[side], Path(scratch) / "out.json")
                    for row in found["rows"]:
                        key = (name, row["case"], row["variant"])
                        medians = {clock: row[clock]["median"] for clock in CLOCKS}
                        times.setdefault(key, ([], []))[side].append(medians)
                    for case, error in found["errors"].items():
                        case = "/".join(filter(None, [name, case]))
                        errors[f"{commits[side]} cannot run {case}: {error}"] = None
    heads = [f"{label}: old s | new s | new / old | verdict" for label in CLOCKS.values()]
    print(f"| {given.pairs} pairs | {' | '.join(heads)} |")
    print("|---" * (1 + 4 * len(CLOCKS)) + "|")
    for key, (old, new) in times.items():
        if len(old) == len(new):
            print(ratio_line(key, old, new))
    print("\n".join(errors))


if __name__ == "__main__":
    main()
