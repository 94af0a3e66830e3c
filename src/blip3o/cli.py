"""L7: the `blip3o` command: parses its words and says what went wrong. Nothing is decided here."""

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from blip3o import __version__, cli_commands
from blip3o.cli_data import add_data_commands
from blip3o.core.errors import PreemptedError, UsageError
from blip3o.core.log import say
from blip3o.serve.config import add_options

EXIT_USAGE, EXIT_FAILURE, EXIT_PREEMPTED, EXIT_INTERRUPTED = 2, 1, 75, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status.

    Args:
        arguments: the words after `blip3o`; those of the process if None.
    """
    options = build_parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files and records may hold anything
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = options.run(options)
        sys.stdout.flush()  # a reader that went away shows itself here and not at the exit
    except UsageError as error:
        return _report(options, f"error: {error}", EXIT_USAGE)
    except PreemptedError as error:
        return _report(options, str(error), EXIT_PREEMPTED)
    except KeyboardInterrupt:
        return _report(options, "interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output went away; nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except Exception as error:  # noqa: BLE001  (a bug: one line for users, all of it with --debug)
        reason = (str(error).splitlines() or ["no reason given"])[0]
        message = f"failed: {type(error).__name__}: {reason} (--debug shows more)"
        return _report(options, message, EXIT_FAILURE)
    return status or 0


def _report(options: argparse.Namespace, message: str, status: int) -> int:
    if options.debug:
        traceback.print_exc()
    say(f"blip3o: {message}")
    return status


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message} (--help shows the options)\n")


class _CommandParser(_Parser):
    """Takes words and options in any order: `train NAME --out DIR path=value`."""

    _is_intermixed = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # noqa: ANN401
        # argparse comes back here for the second half; a parser of commands hands all on.
        if self._is_intermixed or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._is_intermixed = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_intermixed = False


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser with every command; a test pins the list of options."""
    parser = _Parser(
        prog="blip3o", description="Unified multimodal models: text and pictures in and out."
    )
    parser.add_argument("--version", action="version", version=f"blip3o {__version__}")
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", parser_class=_CommandParser
    )

    command = _command(commands, "generate", cli_commands.generate, "pictures from prompts")
    command.add_argument("prompt", nargs="*", help="what to draw; several prompts make a batch")
    command.add_argument("--prompts", type=Path, help="a file with one prompt a line")
    command.add_argument("--out", type=Path, default=Path("outputs"), help="folder to write to")
    command.add_argument("--num-images", type=int, default=1, help="pictures of each prompt")
    _add_sampling(command)

    command = _command(commands, "ask", cli_commands.ask, "an answer about pictures")
    command.add_argument("image", nargs="+", help="pictures, then the question")
    _add_text_sampling(command)
    _add_pipeline(command)

    command = _command(
        commands, "chat", cli_commands.chat, "a conversation; /image FILE adds a picture"
    )
    _add_text_sampling(command)
    _add_pipeline(command)

    command = _command(commands, "edit", cli_commands.edit, "a picture changed as told")
    command.add_argument("image")
    command.add_argument("instruction")
    command.add_argument("--out", type=Path, default=Path("edited.png"), help="file to write")
    _add_sampling(command)

    command = _command(
        commands, "reconstruct", cli_commands.reconstruct, "a picture through its features"
    )
    command.add_argument("image")
    command.add_argument("--out", type=Path, default=Path("reconstructed.png"))
    _add_seed(command)
    _add_pipeline(command)

    command = _command(commands, "serve", cli_commands.serve, "an OpenAI-compatible server")
    add_options(command)
    _add_pipeline(command)

    command = _command(commands, "train", cli_commands.train, "train a recipe; again to resume")
    command.add_argument("recipe", help="a recipe's name or a YAML file")
    command.add_argument("--out", type=Path, required=True, help="run folder")
    command.add_argument("overrides", nargs="*", metavar="path=value")

    command = _command(commands, "eval", cli_commands.eval, "score a model on a benchmark")
    command.add_argument("benchmark")
    command.add_argument("--out", type=Path, required=True, help="folder for results.json")
    command.add_argument("overrides", nargs="*", metavar="path=value")
    _add_pipeline(command)

    data = commands.add_parser("data", help="index, lint, stats, pack, cache: data tools")
    add_data_commands(
        data.add_subparsers(title="commands", required=True, metavar="COMMAND"), _command
    )

    command = _command(
        commands, "scenes", cli_commands.scenes, "write the scenes data set to files"
    )
    command.add_argument("--out", type=Path, required=True, help="folder for shards")
    command.add_argument("overrides", nargs="*", metavar="path=value")

    command = _command(
        commands, "convert", cli_commands.convert, "a published checkpoint to our layout, or back"
    )
    command.add_argument("source", help="a model folder, a training checkpoint or a hub id")
    command.add_argument("dest", type=Path, help="folder to write; new or empty")
    command.add_argument("--to", default="blip3o", help="layout to write: blip3o or published")
    command.add_argument("--revision", help="branch, tag or commit of a hub id")
    command.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read pytorch_model.bin (weights only) of a source that you trust",
    )

    command = _command(
        commands, "recipes", cli_commands.recipes, "list recipes, or show one as YAML"
    )
    command.add_argument("action", nargs="?", choices=["list", "show"], default="list")
    command.add_argument("name", nargs="?")
    _command(commands, "models", cli_commands.models, "the models at hand")
    command = _command(commands, "doctor", cli_commands.doctor, "what this machine can do")
    command.add_argument("--model", help="also say what memory this model needs, in every form")
    command.add_argument("--device", default="auto", help="what it has to fit on")
    return parser


def _command(
    commands: argparse._SubParsersAction, name: str, run: object, summary: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    command.set_defaults(run=run)
    command.add_argument("--debug", action="store_true", help="show tracebacks")
    return command


def _add_pipeline(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", default="pocket", help="a bundled name, a model folder or a hub id"
    )
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    command.add_argument("--dtype", default="auto", help="auto, fp32, bf16, fp16")
    command.add_argument("--quantize", help="int8 or int4, for the backbone's weights")
    command.add_argument(
        "--offload", default="none", help="none, model or sequential: weights wait on the CPU"
    )
    command.add_argument("--revision", help="branch, tag or commit of a hub id")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="another setting of the model, such as sampling.num_decoder_steps=20; repeatable",
    )


def _add_seed(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, default=0, help="with all else equal, equal pictures")


def _add_sampling(command: argparse.ArgumentParser) -> None:
    _add_seed(command)
    command.add_argument("--steps", type=int, help="DiT steps; the model's own number if left out")
    command.add_argument("--guidance", type=float, help="1 or more; likewise")
    _add_pipeline(command)


def _add_text_sampling(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--temperature", type=float, help="0, the default, takes the likeliest words; more draws"
    )
    command.add_argument("--top-p", type=float, help="draw from the likeliest with this share")
    command.add_argument("--top-k", type=int, help="draw from so many likeliest tokens")
    command.add_argument("--seed", type=int, help="with all else equal, an equal answer; -1: a new")
    command.add_argument(
        "--max-new-tokens", type=int, help="longest answer; the model's own if not"
    )
    command.add_argument(
        "--stop", action="append", metavar="TEXT", help="a text that ends the answer; repeatable"
    )
