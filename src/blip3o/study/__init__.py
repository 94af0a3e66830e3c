"""L6: studies: named grids of runs at equal steps and samples, and their reports."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from blip3o.core.describe import describe_functions
from blip3o.core.errors import UsageError, shown
from blip3o.core.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from blip3o.study.grid import Study

STUDIES: "Registry[Callable[[], Study]]" = Registry(
    "study",
    {
        "paper": ".paper:paper",
        "training": ".training:training",
    },
    package=__name__,
)


@dataclasses.dataclass(frozen=True)
class Shard:
    """The part of a study's runs that one process does: every n-th run.

    Args:
        number: number of the part, from 1.
        count: number of parts.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Returns the shard that a text such as "2/3" names.

        Raises:
            UsageError: for another form, or a number that is not from 1 to the count.
        """
        number, slash, count = text.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal()):
            raise UsageError(f"--shard must be I/N, such as 1/2, got {shown(text)}")
        if not 1 <= int(number) <= int(count):
            raise UsageError(f"--shard I/N needs I from 1 to N, got {shown(text)}")
        return cls(int(number), int(count))


WHOLE = Shard()
"""All runs."""


def describe_studies() -> str:
    """Returns one line per study: its name and the first line of its docstring."""
    return describe_functions(STUDIES, Path(__file__).parent)
