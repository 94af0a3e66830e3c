"""L7: options that several commands share."""

import argparse
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict, cast, get_args

from blip3o.cli_parser import Parser, path, real, whole
from blip3o.core.choices import (
    OFFLOADS,
    QUANTIZATIONS,
    PrecisionName,
    check_offload,
    check_precision,
    check_quantization,
)
from blip3o.core.describe import OVERRIDES
from blip3o.core.errors import UsageError
from blip3o.core.files import check_folder
from blip3o.weights.names import check_name


def add_out(
    command: argparse.ArgumentParser,
    text: str,
    check: Callable[[Path], None] = check_folder,
    *,
    default: str | None = None,
    required: bool = False,
) -> None:
    """Adds `--out`, whose value is checked before the command does any work.

    Args:
        command: the command's parser.
        text: help of the option.
        check: refuses a path that cannot be written to.
        default: path if the option is omitted.
        required: whether the option is required.
    """
    shown = "" if default is None else " (default: %(default)s)"
    command.add_argument(
        "--out",
        type=path,
        default=None if default is None else Path(default),
        required=required,
        metavar="PATH",
        help=text + shown,
    )
    command.set_defaults(places={"out": check})


def add_pipeline(command: argparse.ArgumentParser) -> None:
    """Adds the options that select a model and how it is loaded."""
    command.add_argument(
        "--model",
        default="pocket",
        help="name from `blip3o models`, model folder or hub id (default: %(default)s)",
    )
    command.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)"
    )
    command.add_argument(
        "--dtype",
        default="auto",
        help=f"{_choices(get_args(PrecisionName))} (default: %(default)s)",
    )
    command.add_argument(
        "--quantize",
        help=f"{_choices(QUANTIZATIONS)} weights of the backbone (default: not quantized)",
    )
    command.add_argument(
        "--offload",
        default="none",
        help=f"keep unused weights on the CPU: {_choices(OFFLOADS)} (default: %(default)s)",
    )
    command.add_argument("--revision", help="branch, tag or commit of a hub model")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="changed setting of the model, such as sampling.num_decoder_steps=20; repeatable",
    )


def add_server(
    command: argparse.ArgumentParser,
    name: str = "server",
    text: str = "running `blip3o serve` that does the work, such as http://127.0.0.1:8000; --model "
    "is the name of its model",
) -> None:
    """Adds the option of a server; the options of a local model, which exclude it, come before.

    Args:
        command: the command's parser.
        name: name of the option, without dashes.
        text: its help.
    """
    own = (*Placement.__annotations__, "revision", "set")
    command.set_defaults(server_option=name, local={one: command.get_default(one) for one in own})
    command.add_argument(f"--{name}", metavar="URL", help=text)


class Placement(TypedDict):
    """Where and how the weights of a model are held."""

    device: str
    dtype: PrecisionName
    quantize: str | None
    offload: str


def placement(options: argparse.Namespace) -> Placement:
    """Returns the options of `add_pipeline` that place the weights."""
    return cast("Placement", {name: vars(options)[name] for name in Placement.__annotations__})


def check_model(options: argparse.Namespace) -> None:
    """Checks the options of a model that can be checked without torch and without the model.

    Raises:
        UsageError: for an unknown model, precision, quantization or offloading mode, or an option
            of a local model with a server.
    """
    given = vars(options)
    server = given.get("server_option")
    if server is not None and given[server] is not None:
        for name, default in options.local.items():
            if given[name] != default:
                raise UsageError(f"--{name} is for a local model: leave it out with --{server}")
        return
    check_name(options.model)
    check_precision(options.dtype)
    check_offload(options.offload)
    if options.quantize is not None:
        check_quantization(options.quantize)


def add_shard(command: argparse.ArgumentParser, text: str) -> None:
    """Adds `--shard`.

    Args:
        command: the command's parser.
        text: the pieces of work that a process does.
    """
    command.add_argument(
        "--shard", metavar="I/N", help=f"{text}: several processes or machines share one folder"
    )


def add_overrides(command: argparse.ArgumentParser, text: str, details: Callable[[], str]) -> None:
    """Adds the `path=value` arguments.

    Args:
        command: the command's parser.
        text: their help.
        details: returns the list of settings, which the command's help prints at its end.
    """
    command.add_argument("overrides", nargs="*", default=[], metavar="path=value", help=text)
    if isinstance(command, Parser):
        command.details = lambda: f"{textwrap.fill(OVERRIDES, 79)}\n\n{details()}"


def _choices(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


def add_seed(command: argparse.ArgumentParser) -> None:
    """Adds the seed of image generation."""
    command.add_argument(
        "--seed",
        type=whole,
        default=0,
        help="seed of the noise; -1 draws a new one and prints it (default: %(default)s)",
    )


def add_sampling(command: argparse.ArgumentParser) -> None:
    """Adds the options of image sampling and those of `add_pipeline`."""
    add_seed(command)
    command.add_argument(
        "--steps", type=whole, help="DiT steps, 1 to 1000 (default: that of the model)"
    )
    command.add_argument(
        "--guidance", type=real, help="guidance scale, 1 to 100 (default: that of the model)"
    )
    add_pipeline(command)


def add_text_sampling(command: argparse.ArgumentParser) -> None:
    """Adds the options of text sampling."""
    command.add_argument(
        "--temperature",
        type=real,
        help="0 takes the likeliest token; above 0, tokens are drawn (default: 0)",
    )
    command.add_argument(
        "--top-p",
        type=real,
        help="draw from the likeliest tokens with this total probability (default: 1)",
    )
    command.add_argument(
        "--top-k", type=whole, help="draw from this number of likeliest tokens (default: all)"
    )
    command.add_argument(
        "--seed", type=whole, help="seed of the drawn tokens; -1 draws a new one (default: -1)"
    )
    command.add_argument(
        "--max-new-tokens", type=whole, help="longest answer in tokens (default: that of the model)"
    )
    command.add_argument(
        "--stop", action="append", metavar="TEXT", help="text that ends the answer; repeatable"
    )
