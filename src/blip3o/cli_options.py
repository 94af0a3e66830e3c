"""L7: options that several commands share."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from blip3o.cli_parser import path, real, whole
from blip3o.core.choices import OFFLOADS, QUANTIZATIONS, PrecisionName
from blip3o.core.files import check_folder


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
        type=path,
        default=None if default is None else Path(default),
        required=required,
        metavar="PATH",
        help=meaning + shown,
    )
    command.set_defaults(places={"out": check})


def add_pipeline(command: argparse.ArgumentParser) -> None:
    """Adds the options that say which model is loaded, and how.

    Args:
        command: the command's parser.
    """
    command.add_argument(
        "--model",
        default="pocket",
        help="a name that `blip3o models` lists, a model folder or a hub id (default: %(default)s)",
    )
    command.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)"
    )
    command.add_argument(
        "--dtype",
        default="auto",
        help=f"{', '.join(get_args(PrecisionName))} (default: %(default)s)",
    )
    command.add_argument(
        "--quantize",
        help=f"{' or '.join(QUANTIZATIONS)}, for the backbone's weights (default: neither)",
    )
    command.add_argument(
        "--offload",
        default="none",
        help=f"{', '.join(OFFLOADS)}: weights wait on the CPU (default: %(default)s)",
    )
    command.add_argument("--revision", help="branch, tag or commit of a hub id")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="another setting of the model, such as sampling.num_decoder_steps=20; repeatable",
    )


def add_seed(command: argparse.ArgumentParser) -> None:
    """Adds the seed of images.

    Args:
        command: the command's parser.
    """
    command.add_argument(
        "--seed",
        type=whole,
        default=0,
        help="equal seeds, equal images; -1 draws one and says it (default: %(default)s)",
    )


def add_sampling(command: argparse.ArgumentParser) -> None:
    """Adds the options that say how images are sampled, and those of `add_pipeline`.

    Args:
        command: the command's parser.
    """
    add_seed(command)
    command.add_argument(
        "--steps", type=whole, help="DiT steps, 1 to 1000 (default: the model's own number)"
    )
    command.add_argument("--guidance", type=real, help="1 to 100 (default: the model's own number)")
    add_pipeline(command)


def add_text_sampling(command: argparse.ArgumentParser) -> None:
    """Adds the options that say how an answer is written.

    Args:
        command: the command's parser.
    """
    command.add_argument(
        "--temperature",
        type=real,
        help="0 takes the likeliest words, more draws them (default: 0)",
    )
    command.add_argument(
        "--top-p", type=real, help="draw from the likeliest words with this share (default: 1)"
    )
    command.add_argument(
        "--top-k", type=whole, help="draw from this many likeliest tokens (default: all)"
    )
    command.add_argument(
        "--seed", type=whole, help="an equal seed gives an equal answer; -1 draws one (default: -1)"
    )
    command.add_argument(
        "--max-new-tokens", type=whole, help="longest answer (default: the model's own number)"
    )
    command.add_argument(
        "--stop", action="append", metavar="TEXT", help="a text that ends the answer; repeatable"
    )
