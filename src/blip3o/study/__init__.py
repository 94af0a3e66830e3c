"""L6: studies: named grids of runs at equal steps and samples, and their reports."""

from pathlib import Path
from typing import TYPE_CHECKING

from blip3o.core.describe import describe_functions
from blip3o.core.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from blip3o.study.grid import Study

STUDIES: "Registry[Callable[[], Study]]" = Registry(
    "study",
    {
        "contamination": ".contamination:contamination",
        "paper": ".paper:paper",
        "training": ".training:training",
    },
    package=__name__,
)


EVALUATIONS = Registry(
    "evaluation of a study",
    {
        "methods": ".measures:MethodEvaluation",
        "contamination": ".leaks:LeakEvaluation",
    },
    package=__name__,
)


def describe_studies() -> str:
    """Returns one line per study: its name and the first line of its docstring."""
    return describe_functions(STUDIES, Path(__file__).parent)
