"""The spatial score of T2I-CompBench: where a detector finds the two things of a prompt."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from blip3o.eval.detectors import Detections

Side = Literal["left", "right", "top", "bottom", "near"]

RELATIONS: dict[str, Side] = {
    "on the left of": "left",
    "on the right of": "right",
    "on the top of": "top",
    "on the bottom of": "bottom",
    "next to": "near",
    "near": "near",
    "on side of": "near",
}
"""Words of a prompt between its two things."""

_PERSONS = {"girl", "boy", "man", "woman"}
_MOST_OVERLAP = 0.1
_NEAR_PX = 150.0
_LEAST_SCORE = 0.5


class FoundThing(NamedTuple):
    """A thing that a detector finds.

    Attributes:
        box: x0, y0, x1, y1 in pixels.
        score: its confidence.
    """

    box: tuple[float, float, float, float]
    score: float


def spatial_score(side: Side, subject: FoundThing | None, reference: FoundThing | None) -> float:
    """Returns the score of an image, 0 or from 0.5 to 1.

    It is a quarter of each confidence plus half of the score of the position; a sum below 0.5
    becomes 0, so a thing that is not found always gives 0.

    Args:
        side: where the subject should be, seen from the reference.
        subject: the first thing of the prompt; None if it is not found.
        reference: the second thing.
    """
    score = sum(0.25 * thing.score for thing in (subject, reference) if thing is not None)
    if subject is not None and reference is not None:
        score += 0.5 * position_score(side, subject.box, reference.box)
    return score if score >= _LEAST_SCORE else 0.0


def position_score(side: Side, subject: Sequence[float], reference: Sequence[float]) -> float:
    """Returns how well two boxes have a relation, from 0 to 1.

    A direction holds if the centers differ most along its axis; boxes that overlap by an IoU of 0.1
    or more get 0.1 / IoU. Things are near if either offset is below 150 pixels, else they get 150 /
    the larger offset.

    Args:
        side: the relation of the subject to the reference.
        subject: x0, y0, x1, y1 in pixels; y grows downward.
        reference: the same of the reference.
    """
    dx = (subject[0] + subject[2] - reference[0] - reference[2]) / 2
    dy = (subject[1] + subject[3] - reference[1] - reference[3]) / 2
    if side == "near":
        if min(abs(dx), abs(dy)) < _NEAR_PX:
            return 1.0
        return _NEAR_PX / max(abs(dx), abs(dy))
    offset, other = (dx, dy) if side in {"left", "right"} else (dy, dx)
    is_there = offset < 0 if side in {"left", "top"} else offset > 0
    if not is_there or abs(offset) <= abs(other):
        return 0.0
    overlap = _iou(subject, reference)
    return 1.0 if overlap < _MOST_OVERLAP else _MOST_OVERLAP / overlap


def first_found(noun: str, found: Detections, classes: Sequence[str]) -> FoundThing | None:
    """Returns the first finding of a noun; girls, boys, men and women are persons.

    Args:
        noun: a noun of a prompt, without its article.
        found: the findings in one image.
        classes: the classes of the detector.
    """
    name = "person" if noun in _PERSONS else noun
    for label, box, score in zip(found.labels, found.boxes, found.scores, strict=True):
        if classes[label] == name:
            x0, y0, x1, y1 = (float(value) for value in box)
            return FoundThing((x0, y0, x1, y1), float(score))
    return None


def read_relation(prompt: str) -> tuple[str, Side, str] | None:
    """Returns subject, side and reference of "a dog on the left of a car"; None for other prompts.

    Nouns have no article.
    """
    for words, side in RELATIONS.items():
        subject, found, reference = prompt.removesuffix(".").partition(f" {words} ")
        if found:
            return _bare(subject), side, _bare(reference)
    return None


def _bare(phrase: str) -> str:
    first, _, rest = phrase.partition(" ")
    return rest if first in {"a", "an", "the"} else phrase


def _iou(one: Sequence[float], other: Sequence[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    union = sum(areas) - both
    return both / union if union > 0 else 0.0
