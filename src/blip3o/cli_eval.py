"""L7: the `blip3o eval` commands."""

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from blip3o.cli_options import (
    add_out,
    add_overrides,
    add_pipeline,
    add_server,
    add_shard,
    check_model,
    placement,
)
from blip3o.cli_parser import path
from blip3o.core.errors import UsageError
from blip3o.core.files import check_file, check_no_file
from blip3o.core.options import add_options, from_options
from blip3o.core.shard import WHOLE, Shard
from blip3o.eval.rewards.config import RewardServerConfig

if TYPE_CHECKING:
    from blip3o.eval.report.results import Results

AddCommand = Callable[..., argparse.ArgumentParser]

COMMANDS = ("score", "report", "serve-rewards")
"""Words after `blip3o eval` that are no benchmarks."""


def add_eval_commands(commands: argparse._SubParsersAction, add: AddCommand) -> None:
    """Adds `eval NAME`, `eval score`, `eval report` and `eval serve-rewards`.

    Args:
        commands: table of the commands of `blip3o`.
        add: adds a command to a table, given its name, function and summary.
    """
    command = add(commands, "eval", _eval, "score a model on a benchmark, or list the benchmarks")
    command.add_argument("benchmark", nargs="?", help="name of a benchmark; all, without one")
    add_out(
        command,
        "folder for samples, verdicts and results; the same call again resumes. Without it, the "
        "settings of the benchmark are listed",
        check_no_file,
    )
    add_shard(command, "do every N-th group of samples from group I on")
    _add_settings(command)
    add_pipeline(command)
    add_server(
        command,
        "url",
        "score the model of an OpenAI-compatible server at this address; see --model",
    )

    command = add(commands, "eval score", _score, "score images that any program has drawn")
    command.add_argument("benchmark", help="name of a benchmark")
    command.add_argument(
        "folder", type=path, help="an evaluation, or a folder in the layout of the benchmark"
    )
    add_out(command, "folder for verdicts and results", check_no_file, required=True)
    command.add_argument(
        "--about",
        action="append",
        default=[],
        metavar="NAME=TEXT",
        help="fact about the images for the results: model, seed, steps, guidance; repeatable",
    )
    command.add_argument(
        "--allow-missing",
        action="store_true",
        help="count missing and broken images as failures instead of refusing the folder",
    )
    add_shard(command, "judge every N-th group of images from group I on")
    _add_settings(command)

    command = add(commands, "eval report", _report, "compare results: table, plots, worst images")
    command.add_argument("folders", nargs="+", type=path, help="folders of evaluations")
    add_out(command, "HTML file to write (default: print the table only)", check_file)
    command.add_argument(
        "--side-by-side",
        action="store_true",
        help="show results of different titles together, without a comparison",
    )

    command = add(commands, "eval serve-rewards", _serve_rewards, "serve a benchmark as rewards")
    command.add_argument("--benchmark", required=True, help="name of a benchmark of images")
    add_options(command, RewardServerConfig)
    _add_settings(command)


def _add_settings(command: argparse.ArgumentParser) -> None:
    add_overrides(
        command,
        "changed setting of the benchmark, such as seed=1",
        lambda: "`blip3o eval NAME` lists the settings of a benchmark.",
    )


def _eval(options: argparse.Namespace) -> int:
    """Scores a model and prints the main figures as JSON; returns 0 if they are complete."""
    from blip3o.eval import BENCHMARKS, describe_benchmark, describe_benchmarks

    if options.benchmark is None:
        print(describe_benchmarks())
        return 0
    BENCHMARKS.place(options.benchmark)
    if options.out is None:
        print(describe_benchmark(options.benchmark))
        return 0
    shard = _shard(options)
    check_model(options)
    from blip3o.eval.start import run_benchmark, run_remote

    if options.url is not None:
        results = run_remote(
            options.benchmark,
            options.url,
            options.model,
            options.out,
            options.overrides,
            shard=shard,
        )
    else:
        results = run_benchmark(
            options.benchmark,
            options.model,
            options.out,
            options.overrides,
            shard=shard,
            revision=options.revision,
            model_overrides=options.set,
            **placement(options),
        )
    return _print(results)


def _score(options: argparse.Namespace) -> int:
    """Scores images and prints the main figures as JSON; returns 0 if they are complete."""
    from blip3o.eval import BENCHMARKS

    BENCHMARKS.place(options.benchmark)
    facts = dict(_fact(text) for text in options.about)
    shard = _shard(options)
    from blip3o.eval.start import score_images

    results = score_images(
        options.benchmark,
        options.folder,
        options.out,
        options.overrides,
        facts=facts,
        allow_missing=options.allow_missing,
        shard=shard,
    )
    return _print(results)


def _report(options: argparse.Namespace) -> None:
    """Prints a table of results, and writes a page that compares them."""
    from blip3o.eval.report.text import report

    print(report(options.folders, options.out, side_by_side=options.side_by_side))


def _serve_rewards(options: argparse.Namespace) -> None:
    """Serves rewards until the process is stopped."""
    from blip3o.eval.rewards import REWARDS

    REWARDS.place(options.benchmark)
    config = from_options(RewardServerConfig, options)
    try:
        from blip3o.eval.rewards.server import serve_rewards
    except ImportError as error:
        raise UsageError(f"{error.name} is missing: pip install 'blip3o[serve]'") from error
    serve_rewards(options.benchmark, options.overrides, config)


def _shard(options: argparse.Namespace) -> Shard:
    return WHOLE if options.shard is None else Shard.parse(options.shard)


def _fact(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageError(f"--about must be NAME=TEXT, such as model=my-model, got {text!r}")
    return name, value


def _print(results: "Results | None") -> int:
    """Prints the main figures; returns 0, or 1 if other shards are not done yet."""
    if results is None:
        return 1
    shown = ("benchmark", "title", "overall", "by_category")
    print(json.dumps({name: getattr(results, name) for name in shown}))
    return 0
