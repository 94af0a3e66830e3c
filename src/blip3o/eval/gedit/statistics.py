"""The tables of GEdit-Bench: means by type of edit, and the mean of the types."""

import dataclasses
import math
from collections.abc import Sequence

from blip3o.eval.figures import grouped, mean

TASK_TYPES = (
    "background_change",
    "color_alter",
    "material_alter",
    "motion_change",
    "ps_human",
    "style_change",
    "subject-add",
    "subject-remove",
    "subject-replace",
    "text_change",
    "tone_transfer",
)
BEST = 10
"""The best grade; the worst is 0."""
QUESTIONS = ("semantics", "quality")
"""The judge is asked for both."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredEdit:
    """The grades of a sample.

    Args:
        task_type: its type.
        in_intersection: whether it belongs to the intersection.
        semantics: lower grade for semantics, 0..10.
        quality: lower grade for quality, 0..10.
    """

    task_type: str
    in_intersection: bool
    semantics: float
    quality: float

    @property
    def overall(self) -> float:
        """The root of the product of both."""
        return math.sqrt(self.semantics * self.quality)


def statistics(edits: Sequence[ScoredEdit]) -> dict[str, dict[str, float | None]]:
    """Returns the tables of one language: mean of each type, and the plain mean of the types.

    Args:
        edits: all scored samples of the language.

    Returns:
        Tables "semantics", "quality" and "overall", each also with "_intersection". A type without
        samples has None, and so has the "average" of its table.
    """
    tables: dict[str, dict[str, float | None]] = {}
    for ending, chosen in (
        ("", edits),
        ("_intersection", [one for one in edits if one.in_intersection]),
    ):
        for name in (*QUESTIONS, "overall"):
            by_type = grouped((one.task_type, getattr(one, name)) for one in chosen)
            means = {kind: mean(by_type.get(kind, ())) for kind in TASK_TYPES}
            there = [value for value in means.values() if value is not None]
            average = mean(there) if len(there) == len(TASK_TYPES) else None
            tables[name + ending] = {**means, "average": average}
    return tables
