"""L7: the `blip3o` command. Defines the arguments, runs a command and reports its errors."""

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from blip3o import __version__, cli_commands
from blip3o.cli_data import add_data_commands
from blip3o.cli_eval import COMMANDS as EVAL_COMMANDS
from blip3o.cli_eval import add_eval_commands
from blip3o.cli_options import (
    add_out,
    add_overrides,
    add_pipeline,
    add_sampling,
    add_seed,
    add_server,
    add_shard,
    add_text_sampling,
)
from blip3o.cli_parser import EXIT_USAGE, CommandParser, Parser, path, whole
from blip3o.core.describe import describe_settings
from blip3o.core.errors import PreemptedError, UsageError, place_trouble
from blip3o.core.files import check_file, check_folder, check_no_file
from blip3o.core.log import say
from blip3o.core.options import add_options
from blip3o.serve.config import ServeConfig

EXIT_FAILURE, EXIT_PREEMPTED, EXIT_INTERRUPTED = 1, 75, 130

_SOURCE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status.

    Args:
        arguments: the arguments after `blip3o`; those of the process if None.
    """
    _open_closed_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["eval"] and words[1:2] and words[1] in EVAL_COMMANDS:
        words[:2] = [" ".join(words[:2])]
    options = build_parser().parse_args(words)
    for stream in (sys.stdin, sys.stdout):  # file names may be invalid Unicode
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        for name, check in options.places.items():
            if vars(options)[name] is not None:
                check(vars(options)[name])
        status = options.run(options)
        sys.stdout.flush()  # raises BrokenPipeError here instead of at the exit
    except UsageError as error:
        return _report(options, f"error: {error}", EXIT_USAGE)
    except PreemptedError as error:
        return _report(options, str(error), EXIT_PREEMPTED)
    except KeyboardInterrupt:
        return _report(options, "interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of the output has closed it, as `head` does
        _drop_output()
        return EXIT_FAILURE
    except Exception as error:  # noqa: BLE001  (bugs: one line, or all with --debug)
        if isinstance(error, OSError) and error.filename is None and _comes_from_printing(error):
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
    """Opens the standard streams that the caller closed (`>&-`), so no file gets their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if vars(sys)[name] is None:
            vars(sys)[name] = open(os.devnull, mode)  # noqa: SIM115  (for the whole process)


def _comes_from_printing(error: Exception) -> bool:
    """Returns whether printing raised an error; the files `cli*.py` do no other input or output."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(last.filename) in {Path(__file__), *_SOURCE.glob("cli_*.py")}


def _drop_output() -> None:
    """Discards all further output, so the exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(options: argparse.Namespace, message: str, status: int) -> int:
    if options.debug:
        traceback.print_exc()
    say(f"blip3o: {message}")
    return status


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands; a test lists every option."""
    parser = Parser(
        prog="blip3o",
        description="Unified multimodal models that read and write text and images.",
        epilog="Run `blip3o COMMAND --help` for the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"blip3o {__version__}")
    commands = _subcommands(parser)

    _add_image_commands(commands)
    _add_run_commands(commands)
    _add_model_commands(commands)
    return parser


def _add_image_commands(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "generate", cli_commands.generate, "generate images from prompts")
    command.add_argument("prompt", nargs="*", help="prompt in quotes; may be repeated")
    command.add_argument("--prompts", type=path, help="text file with one prompt per line")
    add_out(command, "folder for the images; replaces those of an earlier call", default="outputs")
    command.add_argument(
        "--num-images", type=whole, default=1, help="images per prompt (default: %(default)s)"
    )
    add_sampling(command)
    add_server(command)

    command = _command(commands, "ask", cli_commands.ask, "answer a question about images")
    command.add_argument("image", nargs="+", help="image files, and last the question in quotes")
    add_text_sampling(command)
    add_pipeline(command)
    add_server(command)

    command = _command(commands, "chat", cli_commands.chat, "chat about text and images")
    add_text_sampling(command)
    add_pipeline(command)

    command = _command(commands, "edit", cli_commands.edit, "edit an image by an instruction")
    command.add_argument("image", help="image file to edit")
    command.add_argument("instruction", help="instruction in quotes")
    add_out(command, "file to write", check_file, default="edited.png")
    add_sampling(command)
    add_server(command)

    command = _command(
        commands, "reconstruct", cli_commands.reconstruct, "encode and decode an image"
    )
    command.add_argument("image", help="image file to reconstruct")
    add_out(command, "file to write", check_file, default="reconstructed.png")
    add_seed(command)
    add_pipeline(command)


def _add_run_commands(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "serve", cli_commands.serve, "serve an OpenAI-compatible API")
    add_options(command, ServeConfig)
    add_pipeline(command)

    command = _command(commands, "train", cli_commands.train, "train a recipe or resume its run")
    command.add_argument("recipe", help="name of a recipe, or a YAML file")
    add_out(
        command, "run folder; the same call again resumes the run", check_no_file, required=True
    )
    add_overrides(
        command,
        "changed setting of the recipe, such as train.steps=50 or "
        "data.mixture.0.source.path=my/photos",
        lambda: "Run `blip3o recipes show NAME` for the settings of a recipe.",
    )

    add_eval_commands(commands, _command)

    summary = "compare ways of training, or list the studies"
    command = _command(commands, "study", cli_commands.study, summary)
    command.add_argument("study", nargs="?", help="name of the study; without one, all are listed")
    add_out(command, "folder of the study; the same call again goes on", check_no_file)
    add_shard(command, "do every N-th run from run I on")
    add_overrides(
        command,
        "changed setting of all runs, such as train.steps=50, or of the study, such as "
        "seeds=[0,1,2]",
        lambda: (
            f"settings of a study:\n{_settings('study/grid.py', 'StudySettings')}\n"
            f"settings of evaluation:\n{_settings('study/grid.py', 'Evaluation')}\n"
            f"of methods, too:\n{_settings('study/measures.py', 'MethodEvaluation')}\n"
            f"of contamination, too:\n{_settings('study/leaks.py', 'LeakEvaluation')}"
        ),
    )

    summary = "prepare data: index, lint, stats, pack, cache"
    data = commands.add_parser("data", help=summary, description=_sentence(summary))
    add_data_commands(_subcommands(data), _command)

    command = _command(commands, "scenes", cli_commands.scenes, "write the data set of scenes")
    add_out(command, "folder for the files; the same call again resumes the work", required=True)
    add_overrides(
        command,
        "changed setting of the data set, such as num_scenes=1000",
        lambda: "settings:\n" + _settings("runs/scenes.py", "ScenesConfig"),
    )


def _add_model_commands(commands: argparse._SubParsersAction) -> None:
    command = _command(
        commands, "convert", cli_commands.convert, "convert a checkpoint between layouts"
    )
    command.add_argument("source", help="name of a model, model folder or training checkpoint")
    command.add_argument("dest", type=path, help="new or empty folder for the result")
    command.set_defaults(places={"dest": check_folder})
    command.add_argument(
        "--to", default="blip3o", help="layout: blip3o or published (default: %(default)s)"
    )
    command.add_argument("--revision", help="branch, tag or commit of a hub model")
    command.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read pytorch_model.bin (weights only) of a trusted source",
    )

    command = _command(commands, "recipes", cli_commands.recipes, "list recipes or show one")
    command.add_argument(
        "action", nargs="?", choices=["list", "show"], default="list", help="default: list"
    )
    command.add_argument("name", nargs="?", help="name of the recipe to show")
    _command(commands, "models", cli_commands.models, "list the models and their names")
    command = _command(commands, "doctor", cli_commands.doctor, "describe this machine")
    command.add_argument("--model", help="model whose memory use is also listed")
    command.add_argument(
        "--device", default="auto", help="device for the model (default: %(default)s)"
    )


def _subcommands(parser: argparse.ArgumentParser) -> argparse._SubParsersAction:
    """Adds a table of commands to a parser; without a command, its help is printed."""
    parser.set_defaults(
        run=lambda options: print(parser.format_help(), end=""), debug=False, places={}
    )
    return parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=CommandParser)


def _command(
    commands: argparse._SubParsersAction, name: str, run: object, summary: str
) -> argparse.ArgumentParser:
    description = _sentence(summary)
    command = commands.add_parser(name, help=summary, description=description, allow_abbrev=False)
    command.set_defaults(run=run, places={})
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return command


def _sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."


def _settings(file: str, config: str) -> str:
    return describe_settings(_SOURCE / file, config)
