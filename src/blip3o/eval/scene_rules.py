"""Rules of the scenes benchmark: whether detected objects match a prompt or a scene.

The categories follow GenEval (arXiv 2310.11513): single object, two objects, counting, colors,
position, color attribution. One rule differs from GenEval: the least distance of the centers in a
relation has another value, which does not depend on the sizes of the objects.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence

JUDGED_DISTANCE = 0.05
"""A relation holds if the centers are farther apart than this fraction of the image."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneDetection:
    """One object found in an image of a scene.

    Args:
        thing: kind of the object.
        color: color of the object.
        x: center from the left, as a fraction of the image.
        y: center from the top, as a fraction of the image.
        size: longer side, as a fraction of the image.
        score: confidence of the detector, in [0, 1].
    """

    thing: str
    color: str
    x: float
    y: float
    size: float
    score: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class WantedThing:
    """Objects that a prompt asks for.

    Args:
        thing: kind of the objects.
        color: color of the objects; None for any.
        count: number of objects.
    """

    thing: str
    color: str | None = None
    count: int = 1


def matches(found: SceneDetection, wanted: WantedThing) -> bool:
    """Returns whether a detection has the wanted kind and color."""
    return found.thing == wanted.thing and wanted.color in (None, found.color)


def relation_holds(relation: str, first: SceneDetection, second: SceneDetection) -> bool:
    """Returns whether the first object stands in a relation to the second.

    Args:
        relation: "left of", "right of", "above" or "below".
        first: subject of the relation.
        second: object that the subject is compared with.

    Raises:
        ValueError: for another relation.
    """
    right, down = first.x - second.x, first.y - second.y
    distance = {"left of": -right, "right of": right, "above": -down, "below": down}
    if relation not in distance:
        raise ValueError(f"unknown relation {relation!r}")
    return distance[relation] > JUDGED_DISTANCE


def judge_scene(
    found: Sequence[SceneDetection],
    wanted: Sequence[WantedThing],
    relation: tuple[int, str, int] | None = None,
    *,
    exact_count: bool = False,
) -> bool:
    """Returns whether an image shows the objects that a prompt asks for.

    Args:
        found: the detected objects.
        wanted: the objects that the prompt names.
        relation: (i, name, j): wanted[i] stands in this relation to wanted[j].
        exact_count: whether additional objects of a wanted kind are an error, as in counting.
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
    return any(relation_holds(name, a, b) for a in firsts for b in seconds if a is not b)


def same_objects(
    found: Sequence[SceneDetection], expected: Sequence[SceneDetection], max_shift: float = 0.12
) -> bool:
    """Returns whether an image shows exactly the expected objects at their places.

    Args:
        found: the detected objects.
        expected: the true objects.
        max_shift: largest error of a center along one axis, as a fraction of the image.
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


def attribute_accuracy(named: Counter[tuple[str, str]], truth: Counter[tuple[str, str]]) -> float:
    """Returns the share of (color, thing) pairs that a caption and the scene have in common.

    Args:
        named: number of times that the caption names each pair.
        truth: number of times that each pair is in the scene.

    Returns:
        Number of common pairs over the larger of the two totals, in [0, 1]. Both omitted and
        invented objects lower it.
    """
    common = sum((named & truth).values())
    return common / max(sum(named.values()), sum(truth.values()), 1)
