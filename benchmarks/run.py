"""Runs benchmarks one after the other, each in its own process.

    python benchmarks/run.py [NAME[/CASE] ...] [--rounds N] [--threads N] [--device D] [--quick]

Results go to benchmarks/results/NAME.json; a quick run or a single case is only printed.
"""

import argparse
import subprocess
import sys

from options import add_names, add_options, commands


def main() -> None:
    """Runs the benchmarks; the exit status is 1 if one of them failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_names(parser)
    add_options(parser)
    status = 0
    for words in commands(parser, parser.parse_args()):
        print(*words, flush=True)
        status |= subprocess.run([sys.executable, *words], check=False).returncode
    sys.exit(bool(status))


if __name__ == "__main__":
    main()
