"""L6: recipes: documented functions that return a complete run, and the way to start one."""

import dataclasses
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from blip3o.core.config import dump_yaml, from_dict, override, read_yaml
from blip3o.core.describe import summary_of
from blip3o.core.distributed import is_main, process_group
from blip3o.core.errors import UsageError
from blip3o.core.files import check_plain_name, home_path
from blip3o.core.log import say
from blip3o.core.registry import Registry

if TYPE_CHECKING:
    from blip3o.train.config import RunConfig

RECIPES = Registry(
    "recipe",
    {
        "pocket.encoder": ".pocket:encoder",
        "pocket.decoder": ".pocket:decoder",
        "pocket.look_ups": ".pocket_language:look_ups",
        "pocket.words": ".pocket_language:words",
        "pocket.lists": ".pocket_language:lists",
        "pocket.naming": ".pocket_language:naming",
        "pocket.counting": ".pocket_language:counting",
        "pocket.names": ".pocket_language:names",
        "pocket.understanding": ".pocket_language:understanding",
        "pocket.generation": ".pocket:generation",
        "pocket.tune": ".pocket:tune",
        "pocket.all": ".pocket:all_stages",
        "pocket.smoke": ".pocket:smoke",
        "own_data": ".own_data:pocket",
        "blip3o_4b.generation": ".blip3o_4b:generation",
        "blip3o_4b.tune": ".blip3o_4b:tune",
        "blip3o_4b.understanding": ".blip3o_4b:understanding",
        "blip3o_4b.joint": ".blip3o_4b:joint",
        "blip3o_4b.own_data": ".own_data:blip3o_4b_own_data",
        "blip3o_8b.generation": ".blip3o_8b:generation",
        "blip3o_8b.tune": ".blip3o_8b:tune",
        "blip3o_8b.understanding": ".blip3o_8b:understanding",
        "blip3o_8b.joint": ".blip3o_8b:joint",
        "blip3o_8b.own_data": ".own_data:blip3o_8b_own_data",
        "qwen3_siglip2.understanding": ".qwen3_siglip2:understanding",
        "qwen3_siglip2.generation": ".qwen3_siglip2:generation",
        "qwen3_siglip2.joint": ".qwen3_siglip2:joint",
    },
    package=__name__,
)

_MODEL = "model"
"""Folder of a run's model."""

Stages: TypeAlias = "dict[str, RunConfig]"
"""Several runs in order, by the name of their folder under the run folder."""


def check_recipe(name: str) -> None:
    """Checks that there is a recipe of a name; nothing is imported.

    Args:
        name: as for `load_recipe`.

    Raises:
        UsageError: for an unknown name, or a file that is not there.
    """
    if is_run_file(name):
        if not home_path(name).exists():
            raise UsageError(f"no such file: {name}")
    elif os.path.isfile(name):
        raise UsageError(f"{name} is a file, but no run file: those end in .yaml or .yml")
    else:
        RECIPES.place(name)


def is_run_file(name: str) -> bool:
    """Returns whether a name is that of a YAML file, not of a recipe.

    Args:
        name: as for `load_recipe`.
    """
    return name.lower().endswith((".yaml", ".yml"))


def load_recipe(name: str, run_dir: Path) -> "RunConfig | Stages":
    """Returns the run of a recipe or a YAML file.

    Args:
        name: a name out of `RECIPES`, or a file that ends in .yaml or .yml.
        run_dir: where it will run; a recipe of several stages links them by it.

    Raises:
        UsageError: for an unknown name or a file that does not fit.
    """
    if is_run_file(name):
        return _load_file(home_path(name))
    recipe: Callable[..., RunConfig | Stages] = RECIPES.get(name)
    parameters = inspect.signature(recipe).parameters.values()
    links_stages = any(one.default is inspect.Parameter.empty for one in parameters)
    return recipe(run_dir) if links_stages else recipe()


def _load_file(file: Path) -> "RunConfig | Stages":
    """Returns the run, or the stages by name, that a YAML file holds."""
    from blip3o.train.config import RunConfig

    data = read_yaml(file)
    if not isinstance(data, dict) or not data:
        raise UsageError(f"{file} holds no settings; `blip3o recipes show NAME` prints some")
    known = {field.name for field in dataclasses.fields(RunConfig)}
    try:
        if known.isdisjoint(data):
            for stage in data:
                _check_stage(str(stage))
            return {
                str(stage): from_dict(RunConfig, one, str(stage)) for stage, one in data.items()
            }
        return from_dict(RunConfig, data)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error


def _check_stage(name: str) -> None:
    """Refuses a stage whose name cannot be that of a folder in the run folder."""
    check_plain_name("a stage", name)
    if name == _MODEL:
        raise UsageError(f"a stage cannot be {name!r}: the run folder's last model is called so")


@process_group()
def train_recipe(name: str, run_dir: Path, overrides: Sequence[str]) -> None:
    """Trains a recipe, or goes on with it, and leaves a model folder in `run_dir/model`.

    Args:
        name: a recipe or a YAML file.
        run_dir: the run folder.
        overrides: `path=value` changes; a recipe of several stages wants `stage.path=value`.

    Raises:
        UsageError: for anything that does not fit.
        PreemptedError: if a signal asked to stop; the same call resumes.
    """
    from blip3o.recipes.run import link_model, train
    from blip3o.train.claim import claimed
    from blip3o.train.config import RunConfig

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
            link_model(run_dir / list(stages)[-1] / _MODEL, run_dir / _MODEL)


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


def recipe_yaml(name: str) -> str:
    """Returns a recipe as YAML, to be edited and trained.

    Args:
        name: a name out of `RECIPES`.
    """
    from blip3o.train.config import RunConfig

    run_dir = Path("runs") / name
    recipe = load_recipe(name, run_dir)
    if isinstance(recipe, RunConfig):
        return dump_yaml(recipe)
    note = f"# Stages, trained in this order; they find each other under --out {run_dir}.\n"
    return note + dump_yaml(recipe)


def describe_recipes() -> str:
    """Returns every recipe with the first line of its docstring."""
    names = RECIPES.names()
    width = max(map(len, names))
    lines = []
    for name in names:
        module, function = RECIPES.place(name)
        file = Path(__file__).parent / f"{module.rpartition('.')[2]}.py"
        lines.append(f"{name:{width}}  {summary_of(file, function)}")
    return "\n".join(lines)
