"""The rules of GenEval: from the findings of a detector to a verdict on one image.

All numbers are float32, as in the program of GenEval: in float64, a score equal to float32(0.3)
would be above a threshold of 0.3.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from blip3o.core.bounds import Count, NotNegative, Share

COLORS = (
    *("red", "orange", "yellow", "green", "blue"),
    *("purple", "pink", "brown", "black", "white"),
)
"""The colors in the order in which ties are decided and reasons list them."""

RELATIONS = ("left of", "right of", "above", "below")

_COUNTING = "counting"
_NO_OFFSET = np.float32(1e-3)
_HALF = np.float32(0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """The five numbers of GenEval. Scores with other numbers are not GenEval scores.

    Args:
        threshold: a finding counts if its score is above this number.
        counting_threshold: the same for prompts of the tag `counting`.
        max_objects: most objects of a class, after the threshold.
        max_overlap: of two objects of a class with this IoU or more, the less certain one is
            dropped; 1 drops none.
        position_threshold: share of the sizes of two objects that is taken from their distance
            before a relation is read.
    """

    threshold: Share = 0.3
    counting_threshold: Share = 0.9
    max_objects: Count = 16
    max_overlap: Share = 1.0
    position_threshold: NotNegative = 0.1


class ColorOf(Protocol):
    """Returns the color of each object, a name from `COLORS`."""

    def __call__(self, name: str, numbers: Sequence[int]) -> Sequence[str]:
        """Returns the colors.

        Args:
            name: class of the objects.
            numbers: index of each object in the detector's list of this class.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """The verdict on one image.

    Args:
        reasons: the faults in the words of GenEval; none if the image is right.
        objects: kept objects of each class, most certain first: x0, y0, x1, y1, score, float32
            [K, 5].
        colors: class, index in the detector's list and color of each object whose color was read.
    """

    reasons: tuple[str, ...]
    objects: Mapping[str, NDArray[np.float32]]
    colors: tuple[tuple[str, int, str], ...]

    @property
    def is_correct(self) -> bool:
        """Whether the image shows what the prompt asks for."""
        return not self.reasons


def judge(
    metadata: Mapping[str, Any],
    found: Mapping[str, NDArray[np.float32]],
    color_of: ColorOf,
    rules: Rules | None = None,
) -> Judgement:
    """Returns the verdict on one image.

    Args:
        metadata: a line of the prompt file. Each entry of `include` has a `class`, a `count`, and
            optionally a `color`, or a `position` [relation, index of an earlier entry].
        found: findings of each class in the detector's order: x0, y0, x1, y1 in pixels and score,
            float32 [N, 5].
        color_of: reads colors.
        rules: the numbers; None for GenEval's own.

    Reference:
        parity family `geneval` (`rules`). GenEval names two relations in one reason in random
        order; here they have the order of `RELATIONS`.
    """
    rules = rules or Rules()
    # The tag decides, not the clause: a count in a prompt of another tag has the low threshold.
    is_counting = metadata.get("tag") == _COUNTING
    threshold = rules.counting_threshold if is_counting else rules.threshold
    order = {name: _kept(rows, threshold, rules) for name, rows in found.items()}
    objects = {name: found[name][numbers] for name, numbers in order.items() if len(numbers)}
    reasons: list[str] = []
    colors: list[tuple[str, int, str]] = []
    # The objects of each entry; None if the entry is not satisfied.
    targets: list[NDArray[np.float32] | None] = []
    for entry in metadata.get("include", []):
        name, count = entry["class"], entry["count"]
        chosen = objects.get(name, _NOTHING)[:count]
        fault = None
        if len(chosen) < count:
            fault = f"expected {name}>={count}, found {len(chosen)}"
        else:
            if "color" in entry:
                numbers = [int(number) for number in order.get(name, ())[:count]]
                seen = list(color_of(name, numbers))
                colors += [(name, number, one) for number, one in zip(numbers, seen, strict=True)]
                fault = _color_fault(name, count, entry["color"], seen)
            if "position" in entry and fault is None:
                relation, place = entry["position"]
                fault = _position_fault(name, chosen, relation, targets[place], rules)
        if fault is not None:
            reasons.append(fault)
        targets.append(chosen if fault is None else None)
    for entry in metadata.get("exclude", []):
        name, count = entry["class"], entry["count"]
        number = len(objects.get(name, _NOTHING))
        if number >= count:
            reasons.append(f"expected {name}<{count}, found {number}")
    return Judgement(reasons=tuple(reasons), objects=objects, colors=tuple(colors))


_NOTHING = np.zeros((0, 5), np.float32)


def _kept(rows: NDArray[np.float32], threshold: float, rules: Rules) -> NDArray[np.intp]:
    """Returns the indices of the objects that count, most certain first."""
    scores = rows[:, 4]
    # Of equal scores, the later one in the detector's list comes first.
    order = np.argsort(scores, kind="stable")[::-1]
    order = order[scores[order] > np.float32(threshold)][: rules.max_objects]
    if rules.max_overlap == 1:
        return order
    limit = np.float32(rules.max_overlap)
    kept: list[np.intp] = []
    for number in order:
        if all(_iou(rows[other], rows[number]) < limit for other in kept):
            kept.append(number)
    return np.array(kept, dtype=np.intp)


def _iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> np.float32:
    """Returns intersection over union of two boxes whose last pixel belongs to them."""
    shared = _area(
        np.concatenate([np.maximum(first[:2], second[:2]), np.minimum(first[2:4], second[2:4])])
    )
    union = _area(first) + _area(second) - shared
    return shared / union if union else np.float32(0)


def _area(box: NDArray[np.float32]) -> np.float32:
    sides = np.maximum(box[2:4] - box[:2] + np.float32(1), np.float32(0))
    return sides[0] * sides[1]


def _color_fault(name: str, count: int, color: str, seen: Sequence[str]) -> str | None:
    number = sum(one == color for one in seen)
    if number >= count:
        return None
    counts = Counter(seen)
    listed = ", ".join(f"{counts[one]} {one}" for one in COLORS if one in counts)
    return f"expected {color} {name}>={count}, found {number} {color}; and {listed}"


def _position_fault(
    name: str,
    objects: NDArray[np.float32],
    relation: str,
    target: NDArray[np.float32] | None,
    rules: Rules,
) -> str | None:
    """Returns the fault of the first pair that does not have the relation."""
    if target is None:
        return f"no target for {name} to be {relation}"
    for one in objects:
        for other in target:
            held = relations(one, other, rules.position_threshold)
            if relation not in held:
                return f"expected {name} {relation} target, found {' and '.join(held)} target"
    return None


def relations(
    box: NDArray[np.float32], other: NDArray[np.float32], position_threshold: float = 0.1
) -> tuple[str, ...]:
    """Returns the relations of a box to another one, at most two, in the order of `RELATIONS`.

    Args:
        box: x0, y0, x1, y1 in pixels, y downward, float32 [4 or more].
        other: the same.
        position_threshold: see `Rules`.
    """
    offset = (box[:2] + box[2:4]) / 2 - (other[:2] + other[2:4]) / 2
    extents = np.abs(box[2:4] - box[:2]) + np.abs(other[2:4] - other[:2])
    rest = np.maximum(np.abs(offset) - np.float32(position_threshold) * extents, 0)
    rest = rest * np.sign(offset)
    if (np.abs(rest) < _NO_OFFSET).all():
        return ()
    # The length is that of the whole offset, so near the margin no relation may be left.
    x, y = rest / np.linalg.norm(offset)
    holds = (x < -_HALF, x > _HALF, y < -_HALF, y > _HALF)
    return tuple(name for name, is_held in zip(RELATIONS, holds, strict=True) if is_held)
