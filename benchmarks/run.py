"""Runs benchmarks one after the other, each in its own process.

    python benchmarks/run.py [NAME[/CASE] ...] [--rounds N] [--threads N] [--device D] [--quick]

Results go to benchmarks/results/NAME.json; a quick run or a single case is only printed.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = (
    "generate",
    "sample",
    "train_step",
    "loader",
    "chat",
    "serve",
    "scaling",
    "decontaminate",
    "curate",
)
"""The benchmarks; each is a file of this folder."""


def add_names(parser: argparse.ArgumentParser) -> None:
    """Adds the argument NAME[/CASE]; see `words_of`."""
    parser.add_argument(
        "names", nargs="*", metavar="NAME[/CASE]", help=f"default: {' '.join(NAMES)}"
    )


def words_of(parser: argparse.ArgumentParser, names: Sequence[str]) -> list[list[str]]:
    """Returns the file of each benchmark, followed by its case if it has one."""
    found = []
    for word in names or NAMES:
        name, _, case = word.partition("/")
        if name not in NAMES:
            parser.error(f"there is no benchmark {name!r}; choose from {', '.join(NAMES)}")
        found.append([str(FOLDER / f"{name}.py"), *filter(None, [case])])
    return found


def main() -> None:
    """Runs the benchmarks; the exit status is 1 if one of them failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_names(parser)
    given, options = parser.parse_known_args()
    status = 0
    for words in words_of(parser, given.names):
        print(*words, flush=True)
        status |= subprocess.run([sys.executable, *words, *options], check=False).returncode
    sys.exit(bool(status))


if __name__ == "__main__":
    main()
