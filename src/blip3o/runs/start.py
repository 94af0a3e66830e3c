"""Loads a recipe or a YAML file, and starts it: training, or caching its image features."""

import dataclasses
import inspect
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from blip3o.core.config import dump_yaml, from_dict, override, read_yaml
from blip3o.core.device import keep_freed_memory, resolve_device
from blip3o.core.distributed import is_main, main_first, process_group
from blip3o.core.errors import UsageError
from blip3o.core.files import atomic_folder, check_plain_name, home_path
from blip3o.core.log import say
from blip3o.core.shard import WHOLE, Shard
from blip3o.recipes import RECIPES
from blip3o.runs import is_run_file
from blip3o.runs.assemble import MODEL, assemble
from blip3o.runs.checks import check_run
from blip3o.runs.features import feature_cache
from blip3o.runs.initial import build_model, check_start
from blip3o.runs.scenes import ensure_scenes
from blip3o.train.checkpoint import check_resumable
from blip3o.train.claim import claimed
from blip3o.train.config import RunConfig

Stages: TypeAlias = dict[str, RunConfig]
"""Runs that are trained in order; each key names a folder in the run folder."""


@contextmanager
def _explain_derived() -> Iterator[None]:
    """Explains why `data.image_px`, a setting of older versions, is unknown."""
    try:
        yield
    except UsageError as error:
        unknown = str(error).partition(";")[0]
        if not unknown.endswith("data.image_px'"):
            raise
        raise UsageError(
            f"{unknown}; it is derived from model.image_encoder.image_px; remove the key"
        ) from error


@_explain_derived()
def load_recipe(name: str, run_dir: Path) -> RunConfig | Stages:
    """Returns the config of a recipe or a YAML file, or the configs of its stages.

    Args:
        name: a name from `RECIPES`, or a file that ends in .yaml or .yml.
        run_dir: the run folder; a recipe of several stages finds earlier stages in it.

    Raises:
        UsageError: for an unknown name or an invalid file.
    """
    if is_run_file(name):
        return _load_file(home_path(name))
    recipe: Callable[..., RunConfig | Stages] = RECIPES.get(name)
    parameters = inspect.signature(recipe).parameters.values()
    links_stages = any(one.default is inspect.Parameter.empty for one in parameters)
    return recipe(run_dir) if links_stages else recipe()


def recipe_yaml(name: str) -> str:
    """Returns a recipe, by its name in `RECIPES`, as YAML that can be edited and trained."""
    run_dir = Path("runs") / name
    recipe = load_recipe(name, run_dir)
    note = f"# Stages are trained in this order. Paths between them assume --out {run_dir}.\n"
    return ("" if isinstance(recipe, RunConfig) else note) + dump_yaml(recipe)


@process_group()
@_explain_derived()
def train_recipe(name: str, run_dir: Path, overrides: Sequence[str]) -> None:
    """Trains a recipe, or resumes it, and writes the model folder `run_dir/model`.

    Args:
        name: a recipe or a YAML file.
        run_dir: the run folder.
        overrides: `path=value` changes; `stage.path=value` for a recipe of several stages.

    Raises:
        UsageError: for an invalid recipe, override or run folder.
        PreemptedError: if a signal asked to stop; the same call resumes.
    """
    recipe = load_recipe(name, run_dir)
    if isinstance(recipe, RunConfig):
        train(override(recipe, overrides), run_dir)
        return
    stages = _override_stages(recipe, overrides)
    with claimed(run_dir):
        for stage, config in stages.items():
            say(f"stage {stage}")
            train(config, run_dir / stage)
        if is_main():
            _copy_model(run_dir / list(stages)[-1] / MODEL, run_dir / MODEL)


@process_group()
def train(config: RunConfig, run_dir: Path) -> None:
    """Trains a run to its end and writes its model folder. All processes of a launcher call it.

    Args:
        config: the whole run.
        run_dir: the run folder; created if missing.

    Raises:
        UsageError: for invalid settings, or if another process is using the folder.
        PreemptedError: if a signal asked to stop; the same call resumes.
    """
    check_resumable(run_dir, config)
    check_run(config)
    check_start(config)
    if resolve_device(config.train.device).type == "cpu":
        keep_freed_memory()
    with claimed(run_dir):
        assemble(config, run_dir).fit()


@process_group()
@_explain_derived()
def cache_features(recipe: str, overrides: Sequence[str], shard: Shard = WHOLE) -> str:
    """Caches the image features that a recipe trains on; all processes share the work.

    Args:
        recipe: a recipe of one stage or a YAML file, with a `data.feature_cache`.
        overrides: `path=value` changes.
        shard: the part of each source's shards that these processes do.

    Returns:
        The folder of the cache, or its address.

    Raises:
        UsageError: if the recipe has several stages or no cache, or trains its image encoder.
    """
    config = load_recipe(recipe, Path("runs") / recipe)
    if not isinstance(config, RunConfig):
        raise UsageError(f"{recipe} has several stages; name the recipe of one: blip3o recipes")
    config = override(config, overrides)
    if config.data.feature_cache is None:
        raise UsageError("this recipe has no feature cache; add data.feature_cache=FOLDER")
    check_start(config)
    with main_first():
        ensure_scenes(config.data)
    model = build_model(config)[1]
    return feature_cache(config, model.image_encoder, shard).folder


def _load_file(file: Path) -> RunConfig | Stages:
    data = read_yaml(file)
    if not isinstance(data, dict) or not data:
        raise UsageError(f"{file} holds no settings; `blip3o recipes show NAME` prints some")
    known = {field.name for field in dataclasses.fields(RunConfig)}
    try:
        if not known.isdisjoint(data):
            return from_dict(RunConfig, data)
        for stage in data:
            _check_stage(str(stage))
        return {str(stage): from_dict(RunConfig, one, str(stage)) for stage, one in data.items()}
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error


def _check_stage(name: str) -> None:
    """Refuses a stage whose name cannot be that of a folder in the run folder."""
    check_plain_name("a stage", name)
    if name == MODEL:
        raise UsageError(f"a stage cannot be named {name!r}: that folder holds the final model")


def _override_stages(stages: Stages, overrides: Sequence[str]) -> Stages:
    wanted: dict[str, list[str]] = {stage: [] for stage in stages}
    for assignment in overrides:
        stage, _, rest = assignment.partition(".")
        if stage not in stages:
            raise UsageError(
                f"override {assignment!r} must start with a stage: {', '.join(stages)}"
            )
        wanted[stage].append(rest)
    return {stage: override(config, wanted[stage]) for stage, config in stages.items()}


def _copy_model(model: Path, copy: Path) -> None:
    """Copies a model folder, replacing an earlier copy; readers never see a partial one."""
    with atomic_folder(copy) as scratch:
        shutil.copytree(model, scratch, dirs_exist_ok=True)
        shutil.rmtree(copy, ignore_errors=True)
