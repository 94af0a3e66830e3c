"""Decides from detected objects whether an image shows what was asked; GenEval's rules.

Reference:
    GenEval (arXiv 2310.11513): single object, two objects, counting, colors, position, color
    attribution; the position rule asks for a clear distance between centers.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence

RELATION_MARGIN = 0.05
"""Least distance of two centers, as a fraction of the image, for a relation to hold."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection:
    """One object found in an image.

    Args:
        thing: what it is.
        color: its color.
        x: center from the left, as a fraction of the image.
        y: center from the top, likewise.
        size: longer side, likewise.
        score: how sure the detector is, in [0, 1].
    """

    thing: str
    color: str
    x: float
    y: float
    size: float
    score: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """Objects a prompt asks for.

    Args:
        thing: what they are.
        color: their color; None for any.
        count: how many.
    """

    thing: str
    color: str | None = None
    count: int = 1


def matches(found: Detection, wanted: Wanted) -> bool:
    """Returns whether a detection is of the wanted kind."""
    return found.thing == wanted.thing and wanted.color in (None, found.color)


def holds(relation: str, first: Detection, second: Detection) -> bool:
    """Returns whether the first object stands in a relation to the second.

    Args:
        relation: "left of", "right of", "above" or "below".
        first: the object the sentence is about.
        second: the object it is compared with.

    Raises:
        ValueError: for another relation.
    """
    right, down = first.x - second.x, first.y - second.y
    distance = {"left of": -right, "right of": right, "above": -down, "below": down}
    if relation not in distance:
        raise ValueError(f"unknown relation {relation!r}")
    return distance[relation] > RELATION_MARGIN


def judge(
    found: Sequence[Detection],
    wanted: Sequence[Wanted],
    relation: tuple[int, str, int] | None = None,
    *,
    exact_count: bool = False,
) -> bool:
    """Returns whether an image shows what was asked for.

    Args:
        found: what the detector saw.
        wanted: what the prompt names.
        relation: (i, name, j): wanted[i] stands in this relation to wanted[j].
        exact_count: whether more objects of a kind than asked for are wrong (counting).
    """
    for item in wanted:
        number = sum(matches(one, item) for one in found)
        if number < item.count or (exact_count and number != item.count):
            return False
    if relation is None:
        return True
    i, name, j = relation
    firsts = [one for one in found if matches(one, wanted[i])]
    seconds = [one for one in found if matches(one, wanted[j])]
    return any(holds(name, a, b) for a in firsts for b in seconds if a is not b)


def same_objects(
    found: Sequence[Detection], expected: Sequence[Detection], max_shift: float = 0.12
) -> bool:
    """Returns whether an image shows exactly the expected objects at their places.

    Args:
        found: what the detector saw.
        expected: the truth.
        max_shift: how far a center may be off, as a fraction of the image.
    """
    left = list(found)
    for item in expected:
        near = [
            one
            for one in left
            if (one.thing, one.color) == (item.thing, item.color)
            and max(abs(one.x - item.x), abs(one.y - item.y)) <= max_shift
        ]
        if not near:
            return False
        left.remove(min(near, key=lambda one: abs(one.x - item.x) + abs(one.y - item.y)))
    return not left


def attribute_accuracy(said: Counter[tuple[str, str]], truth: Counter[tuple[str, str]]) -> float:
    """Returns the share of (color, thing) pairs that a caption and the truth have in common.

    Args:
        said: how often a caption names each pair.
        truth: how often each pair is there.

    Returns:
        Common pairs over the larger of the two numbers, in [0, 1]: both leaving out and inventing
        cost.
    """
    common = sum((said & truth).values())
    return common / max(sum(said.values()), sum(truth.values()), 1)
