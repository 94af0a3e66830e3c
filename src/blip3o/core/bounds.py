"""Bounds of numbers, declared in the type of the config field that holds the number.

`Count` and the other types below annotate config fields. `core.config` refuses a number out of
bounds from any origin: the command line, a run file, or the config of a model folder.
"""

import dataclasses
import math
import typing
from typing import Annotated

from blip3o.core.errors import UsageError, shown


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds:
    """The range of numbers that a field accepts.

    Args:
        least: the smallest number.
        most: the largest number. Infinity itself is accepted only if `is_endless`.
        is_open: whether `least` itself is excluded.
        is_endless: whether infinity is accepted.
    """

    least: float = -math.inf
    most: float = math.inf
    is_open: bool = False
    is_endless: bool = False

    def __str__(self) -> str:
        """Returns the range as an error message states it."""
        if self.most < math.inf:
            return f"from {self.least:g} to {self.most:g}"
        if self.least > -math.inf:
            return f"{'above' if self.is_open else 'at least'} {self.least:g}"
        return "a finite number"

    def hold(self, number: float) -> bool:
        """Returns whether a number is in the range; NaN never is."""
        is_above = self.least < number if self.is_open else self.least <= number
        return is_above and number <= self.most and (self.is_endless or abs(number) != math.inf)


Count = Annotated[int, Bounds(1)]
Whole = Annotated[int, Bounds(0)]
Seed = Annotated[int, Bounds(-(2**63), 2**63 - 1)]
"""The seeds that torch accepts for its generators."""
Positive = Annotated[float, Bounds(0, is_open=True)]
NotNegative = Annotated[float, Bounds(0)]
Share = Annotated[float, Bounds(0, 1)]
Guidance = Annotated[float, Bounds(1)]
Limit = Annotated[float, Bounds(0, is_open=True, is_endless=True)]
"""An upper limit; infinity means no limit."""

_FINITE = Bounds()


def check_bounds(hint: object, number: object, path: str) -> None:
    """Checks the number that a field is about to hold.

    Args:
        hint: the type of the field; a type without bounds accepts finite numbers.
        number: the value; anything but a number passes.
        path: dotted path of the field, for the error message.

    Raises:
        UsageError: if the number is out of bounds or not finite.
    """
    if isinstance(number, bool) or not isinstance(number, int | float):
        return
    marks = typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()
    bounds = next((one for one in marks if isinstance(one, Bounds)), _FINITE)
    if not bounds.hold(number):
        wanted = bounds if math.isfinite(number) or bounds.is_endless else _FINITE
        raise UsageError(f"{path} must be {wanted}, got {shown(number)}")
