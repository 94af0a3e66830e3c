"""The rules of the scenes benchmark, on made-up detections."""

from collections import Counter

import pytest

from blip3o.eval.scene_rules import (
    JUDGED_DISTANCE,
    SceneDetection,
    WantedThing,
    attribute_accuracy,
    judge_scene,
    matches,
    relation_holds,
    same_objects,
)


def seen(thing: str, color: str, x: float = 0.5, y: float = 0.5) -> SceneDetection:
    return SceneDetection(thing=thing, color=color, x=x, y=y, size=0.3)


RED_CAT, BLUE_CAR = seen("cat", "red", x=0.2), seen("car", "blue", x=0.8)


def test_a_wanted_object_without_a_color_may_have_any() -> None:
    assert matches(RED_CAT, WantedThing(thing="cat"))
    assert matches(RED_CAT, WantedThing(thing="cat", color="red"))
    assert not matches(RED_CAT, WantedThing(thing="cat", color="blue"))
    assert not matches(RED_CAT, WantedThing(thing="dog", color="red"))


@pytest.mark.parametrize(
    ("relation", "x", "y"),
    [("left of", -1, 0), ("right of", 1, 0), ("above", 0, -1), ("below", 0, 1)],
)
def test_a_relation_requires_a_distance_between_centers(relation: str, x: int, y: int) -> None:
    def moved(distance: float) -> SceneDetection:
        return seen("cat", "red", x=0.5 + x * distance, y=0.5 + y * distance)

    middle = seen("car", "blue")
    assert relation_holds(relation, moved(JUDGED_DISTANCE + 0.01), middle)
    assert not relation_holds(relation, moved(JUDGED_DISTANCE - 0.01), middle)
    assert not relation_holds(relation, middle, moved(0.3))


def test_an_unknown_relation_is_refused() -> None:
    with pytest.raises(ValueError, match="'near'"):
        relation_holds("near", RED_CAT, BLUE_CAR)


def test_every_wanted_object_must_be_found_in_its_color() -> None:
    both = [WantedThing(thing="cat", color="red"), WantedThing(thing="car", color="blue")]
    assert judge_scene([RED_CAT, BLUE_CAR], both)
    assert not judge_scene([RED_CAT], both)
    assert not judge_scene([], both)
    assert not judge_scene([seen("cat", "blue"), seen("car", "red")], both), "colors swapped"
    assert not judge_scene([seen("unknown", "red"), BLUE_CAR], both)


def test_more_than_asked_for_is_wrong_only_when_counting() -> None:
    three, two = [RED_CAT] * 3, [WantedThing(thing="cat", count=2)]
    assert judge_scene(three, two)
    assert not judge_scene(three, two, exact_count=True)
    assert judge_scene(three[:2], two, exact_count=True)
    assert not judge_scene(three[:1], two)


def test_a_relation_is_between_the_named_objects_in_their_order() -> None:
    wanted = [WantedThing(thing="cat"), WantedThing(thing="car")]
    assert judge_scene([BLUE_CAR, RED_CAT], wanted, (0, "left of", 1))
    assert judge_scene([BLUE_CAR, RED_CAT], wanted, (1, "right of", 0))
    assert not judge_scene([BLUE_CAR, RED_CAT], wanted, (0, "right of", 1))
    assert not judge_scene([BLUE_CAR, RED_CAT], wanted, (0, "above", 1))


def test_any_two_different_objects_may_satisfy_a_relation() -> None:
    twins = [WantedThing(thing="cat"), WantedThing(thing="cat")]
    assert judge_scene([RED_CAT, seen("cat", "blue", x=0.8)], twins, (0, "left of", 1))
    assert not judge_scene([RED_CAT], twins, (0, "left of", 1))


def test_same_objects_requires_each_object_once_at_its_place_and_no_other() -> None:
    truth = [RED_CAT, BLUE_CAR]
    assert same_objects([BLUE_CAR, RED_CAT], truth)
    assert same_objects([BLUE_CAR, seen("cat", "red", x=0.3)], truth)
    assert not same_objects([BLUE_CAR, seen("cat", "red", x=0.35)], truth), "moved"
    assert not same_objects([BLUE_CAR, seen("cat", "pink", x=0.2)], truth)
    assert not same_objects([BLUE_CAR, seen("dog", "red", x=0.2)], truth)
    assert not same_objects([BLUE_CAR, RED_CAT, RED_CAT], truth), "one too many"
    assert not same_objects([BLUE_CAR, RED_CAT], [*truth, RED_CAT]), "one detection for two"
    assert same_objects([], [])


def test_omitted_and_invented_objects_lower_attribute_accuracy() -> None:
    truth = Counter({("red", "cat"): 2, ("blue", "car"): 1})
    assert attribute_accuracy(truth, truth) == 1
    assert attribute_accuracy(Counter({("red", "cat"): 2}), truth) == pytest.approx(2 / 3)
    assert attribute_accuracy(truth + Counter({("pink", "hat"): 1}), truth) == pytest.approx(3 / 4)
    assert attribute_accuracy(Counter(), truth) == 0
