"""L7: the `blip3o` command: parses its words and says what went wrong. Nothing is decided here."""

import argparse
import io
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from blip3o import __version__, cli_commands
from blip3o.cli_data import add_data_commands
from blip3o.cli_options import add_out, add_pipeline, add_sampling, add_seed, add_text_sampling
from blip3o.cli_parser import EXIT_USAGE, CommandParser, Parser, path, whole
from blip3o.core.describe import OVERRIDES, describe_settings
from blip3o.core.errors import PreemptedError, UsageError, place_trouble
from blip3o.core.files import check_file, check_folder, check_no_file
from blip3o.core.log import say
from blip3o.serve.config import add_options

EXIT_FAILURE, EXIT_PREEMPTED, EXIT_INTERRUPTED = 1, 75, 130

_SOURCE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status.

    Args:
        arguments: the words after `blip3o`; those of the process if None.
    """
    _open_closed_streams()
    options = build_parser().parse_args(arguments)
    for stream in (sys.stdin, sys.stdout):  # names of files and records may hold anything
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        for name, check in options.places.items():
            if getattr(options, name) is not None:
                check(getattr(options, name))
        status = options.run(options)
        sys.stdout.flush()  # a reader that went away shows itself here and not at the exit
    except UsageError as error:
        return _report(options, f"error: {error}", EXIT_USAGE)
    except PreemptedError as error:
        return _report(options, str(error), EXIT_PREEMPTED)
    except KeyboardInterrupt:
        return _report(options, "interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output went away; nothing is wrong
        _drop_output()
        return EXIT_FAILURE
    except Exception as error:  # noqa: BLE001  (a bug: one line for users, all of it with --debug)
        if isinstance(error, OSError) and error.filename is None and _is_of_output(error):
            error.filename = "the standard output"
            _drop_output()
        trouble = place_trouble(error)
        if trouble is not None:
            return _report(options, f"error: {trouble}", EXIT_USAGE)
        reason = (str(error).splitlines() or ["no reason given"])[0]
        message = f"failed: {type(error).__name__}: {reason} (--debug shows more)"
        return _report(options, message, EXIT_FAILURE)
    return status or 0


def _open_closed_streams() -> None:
    """Opens the standard streams that the caller closed (`>&-`): no file may take their place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  (for the whole process)


def _is_of_output(error: Exception) -> bool:
    """Returns whether an error comes from printing: the command line opens no files by itself."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(last.filename) in {Path(__file__), *_SOURCE.glob("cli_*.py")}


def _drop_output() -> None:
    """Lets what is still to be printed go nowhere, so the exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(options: argparse.Namespace, message: str, status: int) -> int:
    if options.debug:
        traceback.print_exc()
    say(f"blip3o: {message}")
    return status


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser with every command; a test pins the list of options."""
    parser = Parser(
        prog="blip3o",
        description="Unified multimodal models: text and images in and out.",
        epilog="`blip3o COMMAND --help` shows the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"blip3o {__version__}")
    commands = _subcommands(parser)

    _add_image_commands(commands)
    _add_run_commands(commands)
    _add_model_commands(commands)
    return parser


def _add_image_commands(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "generate", cli_commands.generate, "images from prompts")
    command.add_argument("prompt", nargs="*", help="what to draw; several prompts make a batch")
    command.add_argument("--prompts", type=path, help="a file with one prompt a line")
    add_out(
        command,
        "folder to write to; the images of an older call in it are replaced",
        default="outputs",
    )
    command.add_argument(
        "--num-images", type=whole, default=1, help="images of each prompt (default: %(default)s)"
    )
    add_sampling(command)

    command = _command(commands, "ask", cli_commands.ask, "an answer about images")
    command.add_argument("image", nargs="+", help="image files, then the question in quotes")
    add_text_sampling(command)
    add_pipeline(command)

    command = _command(
        commands, "chat", cli_commands.chat, "a conversation; /image FILE adds an image"
    )
    add_text_sampling(command)
    add_pipeline(command)

    command = _command(commands, "edit", cli_commands.edit, "an image changed as told")
    command.add_argument("image", help="the image file to change")
    command.add_argument("instruction", help="what to change, in quotes")
    add_out(command, "file to write", check_file, default="edited.png")
    add_sampling(command)

    command = _command(
        commands, "reconstruct", cli_commands.reconstruct, "an image through its features"
    )
    command.add_argument("image", help="the image file")
    add_out(command, "file to write", check_file, default="reconstructed.png")
    add_seed(command)
    add_pipeline(command)


def _add_run_commands(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "serve", cli_commands.serve, "an OpenAI-compatible server")
    add_options(command)
    add_pipeline(command)

    command = _command(commands, "train", cli_commands.train, "train a recipe; again to resume")
    command.add_argument("recipe", help="a recipe's name or a YAML file")
    add_out(
        command,
        "run folder; the same call again goes on with what it holds",
        check_no_file,
        required=True,
    )
    _add_overrides(
        command,
        "a setting of the recipe, such as train.steps=50 or data.mixture.0.source.path=my/photos",
        lambda: "`blip3o recipes` lists the recipes, `blip3o recipes show NAME` their settings.",
    )

    command = _command(commands, "eval", cli_commands.eval, "score a model on a benchmark")
    command.add_argument("benchmark", help="a benchmark's name: scenes")
    add_out(command, "folder for results.json, samples.jsonl and sheets of images", required=True)
    _add_overrides(
        command,
        "a setting of the benchmark, such as num_edits=50",
        lambda: "settings of scenes:\n" + _settings("eval/scenes.py", "ScenesBenchmark"),
    )
    add_pipeline(command)

    data = commands.add_parser("data", help="index, lint, stats, pack, cache: data tools")
    add_data_commands(_subcommands(data), _command)

    command = _command(
        commands, "scenes", cli_commands.scenes, "write the scenes data set to files"
    )
    add_out(
        command,
        "folder for the shards; the same call again goes on where it stopped",
        required=True,
    )
    _add_overrides(
        command,
        "a setting of the data set, such as num_scenes=1000",
        lambda: "settings:\n" + _settings("runs/scenes.py", "ScenesConfig"),
    )


def _add_model_commands(commands: argparse._SubParsersAction) -> None:
    command = _command(
        commands, "convert", cli_commands.convert, "a published checkpoint to our layout, or back"
    )
    command.add_argument("source", help="a model folder, a training checkpoint or a model's name")
    command.add_argument("dest", type=path, help="folder to write; new or empty")
    command.set_defaults(places={"dest": check_folder})
    command.add_argument(
        "--to", default="blip3o", help="layout to write: blip3o or published (default: %(default)s)"
    )
    command.add_argument("--revision", help="branch, tag or commit of a hub id")
    command.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read pytorch_model.bin (weights only) of a source that you trust",
    )

    command = _command(
        commands, "recipes", cli_commands.recipes, "list recipes, or show one as YAML"
    )
    command.add_argument(
        "action", nargs="?", choices=["list", "show"], default="list", help="(default: %(default)s)"
    )
    command.add_argument("name", nargs="?", help="the recipe to show")
    _command(commands, "models", cli_commands.models, "the models there are, and their names")
    command = _command(commands, "doctor", cli_commands.doctor, "what this machine can do")
    command.add_argument(
        "--model", help="also say what memory this model needs, in every form; named as elsewhere"
    )
    command.add_argument(
        "--device", default="auto", help="what it has to fit on (default: %(default)s)"
    )


def _subcommands(parser: argparse.ArgumentParser) -> argparse._SubParsersAction:
    """Adds commands to a parser; without one, its help is printed."""
    parser.set_defaults(
        run=lambda options: print(parser.format_help(), end=""), debug=False, places={}
    )
    return parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=CommandParser)


def _command(
    commands: argparse._SubParsersAction, name: str, run: object, summary: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    command.set_defaults(run=run, places={})
    command.add_argument("--debug", action="store_true", help="show tracebacks")
    return command


def _settings(file: str, config: str) -> str:
    return describe_settings(_SOURCE / file, config)


def _add_overrides(
    command: argparse.ArgumentParser, meaning: str, details: Callable[[], str]
) -> None:
    command.add_argument("overrides", nargs="*", default=[], metavar="path=value", help=meaning)
    if isinstance(command, Parser):
        command.details = lambda: f"{textwrap.fill(OVERRIDES, 79)}\n\n{details()}"
