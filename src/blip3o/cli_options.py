"""L7: options that several commands share."""

import argparse
from collections.abc import Callable
from pathlib import Path

from blip3o.core.files import check_folder, home_path


def add_out(
    command: argparse.ArgumentParser,
    meaning: str,
    check: Callable[[Path], None] = check_folder,
    *,
    default: str | None = None,
    required: bool = False,
) -> None:
    """Adds `--out`; the place is checked before the command does any work.

    Args:
        command: the command's parser.
        meaning: what is written there, for the help.
        check: refuses a place that cannot be written to.
        default: the place if the option is left out.
        required: whether it must be given.
    """
    shown = "" if default is None else " (default: %(default)s)"
    command.add_argument(
        "--out",
        type=home_path,
        default=None if default is None else Path(default),
        required=required,
        metavar="PATH",
        help=meaning + shown,
    )
    command.set_defaults(places={"out": check})
