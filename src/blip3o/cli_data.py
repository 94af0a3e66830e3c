"""L7: the `blip3o data` commands."""

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from blip3o.cli_options import add_out, add_overrides, add_seed, add_shard
from blip3o.cli_parser import count, path, path_text
from blip3o.core.errors import UsageError
from blip3o.core.files import check_file, check_folder, check_no_file
from blip3o.core.shard import WHOLE, Shard

if TYPE_CHECKING:
    from blip3o.data.collate import Preparer

AddCommand = Callable[..., argparse.ArgumentParser]


def add_data_commands(commands: argparse._SubParsersAction, add: AddCommand) -> None:
    """Adds the commands `index`, `lint`, `stats`, `pack`, `decontaminate`, `curate` and `cache`.

    Args:
        commands: table of commands of `blip3o data`.
        add: adds a command to a table, given its name, function and summary.
    """
    command = add(commands, "index", _index, "index the records of tar shards")
    _add_paths(command)

    command = add(commands, "lint", _lint, "find broken records before training")
    _add_paths(command)
    command.add_argument(
        "--task",
        action="append",
        default=[],
        help="task to check; repeatable (default: the likely tasks)",
    )
    command.add_argument(
        "--min-px", type=count, default=64, help="report shorter sides (default: %(default)s)"
    )
    command.add_argument(
        "--max-tokens", type=count, help="report longer texts, as data.max_text_tokens of a run"
    )
    command.add_argument(
        "--model",
        default="pocket",
        help="model whose tokenizer counts tokens (default: %(default)s)",
    )
    command.add_argument(
        "--conversation", metavar="FIELD", help="name of the field with conversations"
    )
    command.add_argument(
        "--max-turns", type=count, help="questions that a run draws from each conversation"
    )
    _add_image_folder(command)
    add_out(command, "file for all findings, as JSON lines", check_file)

    command = add(commands, "stats", _stats, "summarize sizes, lengths and shapes")
    _add_paths(command)
    add_out(command, "file for an HTML page with plots and images", check_file)
    _add_image_folder(command)

    command = add(commands, "pack", _pack, "pack a folder or a JSON list into tar shards")
    command.add_argument("path", type=path_text, help="folder of images, JSON list or shards")
    add_out(command, "folder for the shards", required=True)
    command.add_argument("--name", help="name of the shards (default: that of the data)")
    command.add_argument(
        "--shard-size", type=count, default=2000, help="records per shard (default: %(default)s)"
    )
    _add_image_folder(command)
    _add_jobs(command)

    command = add(
        commands, "decontaminate", _decontaminate, "find prompts of benchmarks in training data"
    )
    _add_paths(command)
    command.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="NAME[=PATH]",
        help="benchmark, with your copy of its prompts where the package has none, or any list of "
        "prompts (mine=FILE); repeatable (default: geneval, dpg, t2i_compbench)",
    )
    _add_image_folder(command)
    command.add_argument(
        "--clean", type=path, metavar="DIR", help="folder for shards without the found records"
    )
    command.add_argument(
        "--shard-size", type=count, default=2000, help="records per shard (default: %(default)s)"
    )
    add_out(command, "file for all found records, as JSON lines", check_file)
    command.set_defaults(places={"out": check_file, "clean": check_folder})

    command = add(commands, "curate", _curate, "make an instruction set by prompting models")
    command.add_argument("curation", help="name of a bundled curation, or a YAML file")
    add_out(command, "folder of the run; the same call again resumes", check_no_file, required=True)
    add_shard(command, "do every N-th unit of drafts from unit I on")
    command.add_argument(
        "--ray",
        type=count,
        metavar="N",
        help="do the work in N workers on the Ray cluster that RAY_ADDRESS names, or on this "
        "machine; all machines share one folder",
    )
    command.add_argument(
        "--estimate", action="store_true", help="print the most that it may cost, and ask nothing"
    )
    command.add_argument(
        "--lost",
        choices=("stop", "ask", "drop"),
        default="stop",
        help="requests whose answers were lost with a killed process: stop, ask and perhaps pay "
        "again, or go on without them (default: %(default)s)",
    )
    add_overrides(command, "changed setting, such as num_drafts=100", _curations)

    command = add(commands, "review", _review, "write a page on which people judge a curation")
    command.add_argument("folder", type=path, help="folder of a run of blip3o data curate")
    add_out(command, "HTML file to write", check_file, required=True)
    command.add_argument(
        "--num", type=count, default=200, help="drafts to show (default: %(default)s)"
    )
    command.add_argument(
        "--decisions", type=path, metavar="FILE", help="earlier decisions to go on from"
    )
    add_seed(command)

    command = add(commands, "cache", _cache, "compute the image features of a recipe's data")
    command.add_argument("recipe", help="name of a recipe of one stage, or a YAML file")
    command.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="path=value",
        help="changed setting of the recipe, such as data.feature_cache=my/cache",
    )
    add_shard(command, "do every N-th shard of the data from shard I on")


def _add_paths(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "paths", nargs="+", type=path_text, help="shards, patterns of shards, JSON lists or folders"
    )
    _add_jobs(command)


def _add_image_folder(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--image-folder", type=path_text, help="folder that image paths are relative to"
    )


def _add_jobs(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--jobs", type=count, default=os.cpu_count() or 1, help="processes (default: %(default)s)"
    )


def _index(options: argparse.Namespace) -> None:
    from blip3o.data.sources.webdataset import WebDatasetConfig
    from blip3o.data.walk import source_config

    for one in options.paths:
        config = source_config(one)
        if not isinstance(config, WebDatasetConfig):
            raise UsageError(f"{one} has no tar shards; only shards can be indexed")
        source = config.build(jobs=options.jobs)
        print(f"{one}: {len(source)} records in {len(source.paths)} shards")


def _lint(options: argparse.Namespace) -> int:
    from blip3o.data.lint import LintChecks, lint

    checks = LintChecks(
        tasks=tuple(options.task),
        min_px=options.min_px,
        preparer=_preparer(options.model, options.max_tokens),
        conversation=options.conversation,
        max_turns=options.max_turns,
    )
    report = lint(
        options.paths,
        checks,
        jobs=options.jobs,
        out=options.out,
        image_folder=options.image_folder,
    )
    print(report.text())
    return 0 if report.is_clean else 1


def _preparer(model: str, max_tokens: int | None) -> "Preparer | None":
    """Returns the preparer that counts the tokens of a text; None without a limit."""
    if max_tokens is None:
        return None
    from blip3o.data.collate import Preparer
    from blip3o.text.chat import ChatTemplate
    from blip3o.weights.folder import open_model
    from blip3o.weights.hub import to_local

    stored = open_model(to_local(model))
    config = stored.config
    return Preparer(
        chat=ChatTemplate(stored.tokenizer, config.chat, config.num_prompt_image_tokens),
        image_px=config.image_encoder.image_px,
        max_text_tokens=max_tokens,
        question_images=config.question_images,
        token_px=config.backbone.token_px or 1,
    )


def _stats(options: argparse.Namespace) -> None:
    from blip3o.data.stats import describe

    print(
        describe(
            options.paths, jobs=options.jobs, out=options.out, image_folder=options.image_folder
        )
    )
    if options.out is not None:
        print(f"page: {options.out}")


def _pack(options: argparse.Namespace) -> None:
    from blip3o.data.pack import pack

    packed = pack(
        options.path,
        options.out,
        name=options.name,
        shard_size=options.shard_size,
        jobs=options.jobs,
        image_folder=options.image_folder,
    )
    print(packed.text())


def _decontaminate(options: argparse.Namespace) -> int:
    from blip3o.curate.decontaminate import BUNDLED, decontaminate
    from blip3o.data.pack import pack

    names = options.against or BUNDLED
    report = decontaminate(
        options.paths,
        names,
        jobs=options.jobs,
        out=options.out,
        image_folder=options.image_folder,
    )
    print(report.text())
    if options.out is not None:
        print(f"all of them: {options.out}")
    if options.clean is None:
        return 0 if report.is_clean else 1
    for one in options.paths:
        packed = pack(
            one,
            options.clean,
            name=None,
            shard_size=options.shard_size,
            jobs=options.jobs,
            image_folder=options.image_folder,
            leave_out=report.reasons(one),
        )
        print(packed.text())
    return 0


def _curations() -> str:
    from blip3o.curate.config import recipe_names

    return "bundled curations: " + ", ".join(recipe_names())


def _curate(options: argparse.Namespace) -> None:
    from blip3o.curate.config import read_curation
    from blip3o.curate.estimate import estimate_text, estimated
    from blip3o.curate.publish import note_start, publish, require_libraries
    from blip3o.curate.run import Curation

    shard = Shard.parse(options.shard) if options.shard else WHOLE
    if options.shard and options.ray:
        raise UsageError("--ray and --shard divide the same work: leave one of them out")
    config = read_curation(options.curation, options.overrides)
    print(estimate_text(estimated(config), config))
    if options.estimate:
        return
    require_libraries()
    note_start(options.out)
    curation = Curation(config, options.out, options.lost)
    if options.ray:
        from blip3o.curate.ray import run_on_ray

        drafts = run_on_ray(curation, options.ray)
    else:
        drafts = curation.run(shard)
    if drafts is not None:
        folder = publish(config, drafts, curation.images, options.out)
        print(f"finished set: {folder}")


def _review(options: argparse.Namespace) -> None:
    from blip3o.curate.config import read_curation
    from blip3o.curate.review import write_review
    from blip3o.curate.run import SETTINGS, Curation

    config = read_curation(str(options.folder / SETTINGS), [])
    curation = Curation(config, options.folder)
    drafts = curation.drafts(before="review")
    if drafts is None:
        raise UsageError(f"{options.folder} is not done yet: finish it with blip3o data curate")
    shown = write_review(
        drafts,
        curation.images,
        options.out,
        num=options.num,
        seed=options.seed,
        decisions=options.decisions,
    )
    print(f"{len(shown)} drafts: {options.out}")
    print("open it in a browser, save the decisions, and name their file in the stage review")


def _cache(options: argparse.Namespace) -> None:
    from blip3o.runs.start import cache_features

    shard = WHOLE if options.shard is None else Shard.parse(options.shard)
    print(cache_features(options.recipe, options.overrides, shard))
