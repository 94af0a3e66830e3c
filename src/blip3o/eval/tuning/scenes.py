"""The reward `scenes`: how much of a scene's caption an image shows, by the exact detector."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Mapping, Sequence

from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.core.types import ImageRequest
from blip3o.data.scenes.edits import MAX_SHIFT
from blip3o.data.scenes.synonyms import COLOR_NAMES, PLURALS, THING_NAMES
from blip3o.data.scenes.things import BACKGROUNDS, plural
from blip3o.data.scenes.types import RELATION_MARGIN
from blip3o.eval.scene_detector import detect
from blip3o.eval.scene_rules import JUDGED_DISTANCE, SceneDetection

_WRONG_COLOR = 0.5
"""Credit of a right thing in a wrong color."""
_AXIS_WORDS: Mapping[str, tuple[str, ...]] = {
    "x": ("left", "right", "center", "centre", "middle"),
    "y": (
        *("above", "below", "over", "under", "beneath", "underneath", "top", "bottom", "upper"),
        *("lower", "higher", "center", "centre", "middle"),
    ),
}
"""Words that state a place along an axis."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesRewardConfig:
    """The detector of scenes; the records need the field `objects` of the scenes data set."""

    kind: str = "scenes"

    def build(self) -> "ScenesReward":
        """Returns the reward."""
        return ScenesReward()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """Objects that an image shall show.

    Args:
        objects: the objects, at places that are true of the caption.
        has_color: for each object, whether the caption names its color.
        axes: "x", "y" or both, if the caption states places along them.
    """

    objects: tuple[SceneDetection, ...]
    has_color: tuple[bool, ...]
    axes: tuple[str, ...]


class ScenesReward:
    """Scores images of scenes in [0, 1], with credit for parts.

    An image shall show exactly the objects of the record that the caption names: all of them if it
    names none in words that are known. A color counts only if the caption names it. An object in
    the right color counts 1, in another one 0.5, and the sum is divided by the number of wanted
    or of found objects, whichever is larger, so additional objects cost something.

    If the caption has words of place, half of the score is the share of right places. The record's
    scene is true of its caption, so its places along the named axes are right: that of a single
    object, else the order of each two objects that are clearly apart in the scene.
    """

    def score(self, images: Sequence[Image.Image], requests: Sequence[ImageRequest]) -> list[float]:
        """Returns the scores, in [0, 1].

        Raises:
            UsageError: if a record has no objects.
        """
        wanted = [wanted_by(request) for request in requests]
        return [score_scene(detect(image), one) for image, one in zip(images, wanted, strict=True)]


def wanted_by(request: ImageRequest) -> Wanted:
    """Returns the objects that the caption of a scene asks for.

    Raises:
        UsageError: if the record has no objects.
    """
    try:
        objects = [
            SceneDetection(**{key: one[key] for key in ("thing", "color", "x", "y", "size")})
            for one in request.fields["objects"]
        ]
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"the record of {request.prompt!r} has no 'objects' as the scenes data set has them; "
            "the reward scenes needs them"
        ) from error
    caption = _names(BACKGROUNDS).sub("", request.prompt.lower())
    named = [one for one in objects if _of_thing(one.thing).search(caption)] or objects
    return Wanted(
        objects=tuple(named),
        has_color=tuple(bool(_of_color(one.color).search(caption)) for one in named),
        axes=tuple(axis for axis, words in _AXIS_WORDS.items() if _names(words).search(caption)),
    )


def score_scene(found: Sequence[SceneDetection], wanted: Wanted) -> float:
    """Returns the score of the objects of an image, in [0, 1]; see `ScenesReward`."""
    pairs, credit = _matched(found, wanted)
    share = credit / max(len(wanted.objects), len(found), 1)
    places = _right_places(pairs, wanted)
    return share if places is None else share * (1 + places) / 2


def _matched(
    found: Sequence[SceneDetection], wanted: Wanted
) -> tuple[dict[int, SceneDetection], float]:
    """Returns the found object of each wanted one, by its number, and the sum of their credits."""
    left = list(found)
    pairs: dict[int, SceneDetection] = {}
    credit = 0.0
    for checks_color in (True, False):
        for number, (one, has_color) in enumerate(
            zip(wanted.objects, wanted.has_color, strict=True)
        ):
            fitting = [
                other
                for other in left
                if other.thing == one.thing
                and (other.color == one.color or not (has_color and checks_color))
            ]
            if number in pairs or not fitting:
                continue
            pairs[number] = min(fitting, key=functools.partial(_distance, one))
            left.remove(pairs[number])
            credit += 1.0 if checks_color else _WRONG_COLOR
    return pairs, credit


def _right_places(pairs: Mapping[int, SceneDetection], wanted: Wanted) -> float | None:
    """Returns the share of right places; None if the caption states none."""
    right: list[bool] = []
    if len(wanted.objects) == 1:
        for axis in wanted.axes:
            error = _along(wanted.objects[0], axis) - _along(pairs.get(0), axis)
            right.append(abs(error) <= MAX_SHIFT)
    looks = [
        (one.thing, one.color if has_color else None)
        for one, has_color in zip(wanted.objects, wanted.has_color, strict=True)
    ]
    for first, second in itertools.combinations(range(len(wanted.objects)), 2):
        for axis in wanted.axes:
            apart = _along(wanted.objects[first], axis) - _along(wanted.objects[second], axis)
            if abs(apart) < RELATION_MARGIN or looks[first] == looks[second]:
                continue
            seen = _along(pairs.get(first), axis) - _along(pairs.get(second), axis)
            right.append(seen * (1 if apart > 0 else -1) > JUDGED_DISTANCE)
    return sum(right) / len(right) if right else None


def _along(one: SceneDetection | None, axis: str) -> float:
    """Returns a coordinate of an object; one that is missing is nowhere (NaN)."""
    return float("nan") if one is None else (one.x if axis == "x" else one.y)


def _distance(one: SceneDetection, other: SceneDetection) -> float:
    return abs(one.x - other.x) + abs(one.y - other.y)


@functools.cache
def _of_thing(thing: str) -> re.Pattern[str]:
    names = (thing, *THING_NAMES.get(thing, ()))
    others = (PLURALS[thing],) if thing in PLURALS else ()
    return _names((*names, *map(plural, names), *others))


@functools.cache
def _of_color(color: str) -> re.Pattern[str]:
    return _names((color, *COLOR_NAMES.get(color, ())))


@functools.cache
def _names(words: tuple[str, ...]) -> re.Pattern[str]:
    """Returns a pattern of whole words, the longest first."""
    ordered = sorted(words, key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, ordered))})\b")
