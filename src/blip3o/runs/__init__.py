"""L6: runs: load a recipe or a YAML file, assemble a trainer from it and train a model."""

import os

from blip3o.core.errors import UsageError
from blip3o.core.files import home_path
from blip3o.recipes import RECIPES


def check_recipe(name: str) -> None:
    """Checks that a recipe or a run file exists, without importing the recipe.

    Args:
        name: a name from `RECIPES`, or a file that ends in .yaml or .yml.

    Raises:
        UsageError: if the name is unknown or the file is missing.
    """
    if is_run_file(name):
        if not home_path(name).exists():
            raise UsageError(f"no such file: {name}")
    elif os.path.isfile(name):
        raise UsageError(f"{name} is not a run file: the name of a run file ends in .yaml or .yml")
    else:
        RECIPES.place(name)


def is_run_file(name: str) -> bool:
    """Returns whether a name is that of a YAML file, not of a recipe."""
    return name.lower().endswith((".yaml", ".yml"))
