"""Words of the command line that the benchmarks and their tools share."""

import argparse
from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = (
    "generate",
    "sample",
    "decoder_steps",
    "train_step",
    "loader",
    "text",
    "chat",
    "serve",
    "scaling",
    "decontaminate",
    "curate",
)
"""The benchmarks; each is a file of this folder."""


def add_options(parser: argparse.ArgumentParser, *, rounds: int = 5) -> None:
    """Adds the options of every benchmark.

    Args:
        parser: the parser.
        rounds: default number of rounds.
    """
    parser.add_argument("--rounds", type=int, default=rounds, help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="threads of torch; default: its own number")
    parser.add_argument("--device", default="cpu", help="device of the models")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, one round")


def add_names(parser: argparse.ArgumentParser) -> None:
    """Adds the argument NAME[/CASE]."""
    parser.add_argument(
        "names", nargs="*", metavar="NAME[/CASE]", help=f"default: {' '.join(NAMES)}"
    )


def commands(parser: argparse.ArgumentParser, given: argparse.Namespace) -> list[list[str]]:
    """Returns the file of each named benchmark, with its case and its options.

    Args:
        parser: reports an unknown name and ends the program.
        given: the values of `add_names` and `add_options`.
    """
    options = ["--rounds", str(given.rounds), "--device", given.device]
    options += ["--threads", str(given.threads)] if given.threads else []
    options += ["--quick"] if given.quick else []
    found = []
    for word in given.names or NAMES:
        name, _, case = word.partition("/")
        if name not in NAMES:
            parser.error(f"there is no benchmark {name!r}; choose from {', '.join(NAMES)}")
        found.append([str(FOLDER / f"{name}.py"), *filter(None, [case]), *options])
    return found
