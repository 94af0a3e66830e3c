"""Bounds of numbers, stated once: in the type of the field that holds one.

`Count` and the others are types of config fields. `core.config` refuses a number out of bounds
wherever it comes from: the command line, a run file, or the config of a model folder.
"""

import dataclasses
import math
from typing import Annotated, Any

from blip3o.core.errors import UsageError, shown


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds:
    """The numbers that a field takes.

    Args:
        least: the least of them.
        most: the largest of them; infinity stands for itself only where `is_endless`.
        is_open: whether `least` itself is too little.
        is_endless: whether infinity is one of them.
    """

    least: float = -math.inf
    most: float = math.inf
    is_open: bool = False
    is_endless: bool = False

    def __str__(self) -> str:
        """Returns them as an error message tells them."""
        if self.most < math.inf:
            return f"from {self.least:g} to {self.most:g}"
        if self.least > -math.inf:
            return f"{'above' if self.is_open else 'at least'} {self.least:g}"
        return "a finite number"

    def hold(self, number: float) -> bool:
        """Returns whether a number is one of them; NaN never is."""
        is_above = self.least < number if self.is_open else self.least <= number
        return is_above and number <= self.most and (self.is_endless or abs(number) != math.inf)


Count = Annotated[int, Bounds(1)]
Whole = Annotated[int, Bounds(0)]
Seed = Annotated[int, Bounds(-(2**63), 2**63 - 1)]
"""What torch takes for its generators."""
Positive = Annotated[float, Bounds(0, is_open=True)]
NotNegative = Annotated[float, Bounds(0)]
Share = Annotated[float, Bounds(0, 1)]
Guidance = Annotated[float, Bounds(1)]
Limit = Annotated[float, Bounds(0, is_open=True, is_endless=True)]
"""A largest value; infinity is no limit."""

_FINITE = Bounds()


def check_bounds(hint: Any, number: Any, path: str) -> None:  # noqa: ANN401
    """Checks a number that a field is to hold.

    Args:
        hint: the field's type; one without bounds takes finite numbers.
        number: its value; anything but a number passes.
        path: the field, for the error message.

    Raises:
        UsageError: if it is out of bounds or not finite.
    """
    if isinstance(number, bool) or not isinstance(number, int | float):
        return
    marks = getattr(hint, "__metadata__", ())
    bounds = next((one for one in marks if isinstance(one, Bounds)), _FINITE)
    if not bounds.hold(number):
        wanted = bounds if math.isfinite(number) or bounds.is_endless else _FINITE
        raise UsageError(f"{path} must be {wanted}, got {shown(number)}")
