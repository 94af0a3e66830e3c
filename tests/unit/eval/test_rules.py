from collections import Counter

import pytest

from blip3o.eval.rules import (
    RELATION_MARGIN,
    Detection,
    Wanted,
    attribute_accuracy,
    holds,
    judge,
    matches,
    same_objects,
)


def seen(thing: str, color: str, x: float = 0.5, y: float = 0.5) -> Detection:
    return Detection(thing=thing, color=color, x=x, y=y, size=0.3)


RED_CAT, BLUE_CAR = seen("cat", "red", x=0.2), seen("car", "blue", x=0.8)


def test_a_wanted_object_without_a_color_may_have_any() -> None:
    assert matches(RED_CAT, Wanted(thing="cat"))
    assert matches(RED_CAT, Wanted(thing="cat", color="red"))
    assert not matches(RED_CAT, Wanted(thing="cat", color="blue"))
    assert not matches(RED_CAT, Wanted(thing="dog", color="red"))


@pytest.mark.parametrize(
    ("relation", "x", "y"),
    [("left of", -1, 0), ("right of", 1, 0), ("above", 0, -1), ("below", 0, 1)],
)
def test_a_relation_asks_for_a_clear_distance(relation: str, x: int, y: int) -> None:
    def moved(distance: float) -> Detection:
        return seen("cat", "red", x=0.5 + x * distance, y=0.5 + y * distance)

    middle = seen("car", "blue")
    assert holds(relation, moved(RELATION_MARGIN + 0.01), middle)
    assert not holds(relation, moved(RELATION_MARGIN - 0.01), middle)
    assert not holds(relation, middle, moved(0.3))


def test_an_unknown_relation_is_refused() -> None:
    with pytest.raises(ValueError, match="'near'"):
        holds("near", RED_CAT, BLUE_CAR)


def test_every_wanted_object_must_be_there_with_its_color() -> None:
    both = [Wanted(thing="cat", color="red"), Wanted(thing="car", color="blue")]
    assert judge([RED_CAT, BLUE_CAR], both)
    assert not judge([RED_CAT], both)
    assert not judge([], both)
    assert not judge([seen("cat", "blue"), seen("car", "red")], both), "colors swapped"
    assert not judge([seen("unknown", "red"), BLUE_CAR], both)


def test_more_than_asked_for_is_wrong_only_when_counting() -> None:
    three, two = [RED_CAT] * 3, [Wanted(thing="cat", count=2)]
    assert judge(three, two)
    assert not judge(three, two, exact_count=True)
    assert judge(three[:2], two, exact_count=True)
    assert not judge(three[:1], two)


def test_a_relation_is_between_the_named_objects_in_their_order() -> None:
    wanted = [Wanted(thing="cat"), Wanted(thing="car")]
    assert judge([BLUE_CAR, RED_CAT], wanted, (0, "left of", 1))
    assert judge([BLUE_CAR, RED_CAT], wanted, (1, "right of", 0))
    assert not judge([BLUE_CAR, RED_CAT], wanted, (0, "right of", 1))
    assert not judge([BLUE_CAR, RED_CAT], wanted, (0, "above", 1))


def test_any_pair_may_satisfy_a_relation_but_no_object_with_itself() -> None:
    twins = [Wanted(thing="cat"), Wanted(thing="cat")]
    assert judge([RED_CAT, seen("cat", "blue", x=0.8)], twins, (0, "left of", 1))
    assert not judge([RED_CAT], twins, (0, "left of", 1))


def test_same_objects_wants_each_object_once_at_its_place_and_no_other() -> None:
    truth = [RED_CAT, BLUE_CAR]
    assert same_objects([BLUE_CAR, RED_CAT], truth)
    assert same_objects([BLUE_CAR, seen("cat", "red", x=0.3)], truth)
    assert not same_objects([BLUE_CAR, seen("cat", "red", x=0.35)], truth), "moved"
    assert not same_objects([BLUE_CAR, seen("cat", "pink", x=0.2)], truth)
    assert not same_objects([BLUE_CAR, seen("dog", "red", x=0.2)], truth)
    assert not same_objects([BLUE_CAR, RED_CAT, RED_CAT], truth), "one too many"
    assert not same_objects([BLUE_CAR, RED_CAT], [*truth, RED_CAT]), "one detection for two"
    assert same_objects([], [])


def test_attribute_accuracy_punishes_leaving_out_and_inventing() -> None:
    truth = Counter({("red", "cat"): 2, ("blue", "car"): 1})
    assert attribute_accuracy(truth, truth) == 1
    assert attribute_accuracy(Counter({("red", "cat"): 2}), truth) == pytest.approx(2 / 3)
    assert attribute_accuracy(truth + Counter({("pink", "hat"): 1}), truth) == pytest.approx(3 / 4)
    assert attribute_accuracy(Counter(), truth) == 0
