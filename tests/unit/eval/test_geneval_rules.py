import numpy as np
import pytest

from blip3o.eval.geneval.rules import Rules, judge, relations


@pytest.mark.parametrize(("distance", "expected"), [(10, ()), (10.01, ("left of",))])
def test_half_of_the_distance_must_remain(distance: float, expected: tuple[str, ...]) -> None:
    # The margin is a tenth of 50, the widths of both.
    box = np.array([0, 0, 25, 10], np.float32)
    other = box + np.array([distance, 0, distance, 0], np.float32)
    assert relations(box, other) == expected


def test_two_relations_have_a_fixed_order() -> None:
    box, other = np.array([0, 0, 1, 1], np.float32), np.array([9, 9, 10, 10], np.float32)
    assert relations(box, other) == ("left of", "above")
    assert relations(other, box) == ("right of", "below")


def test_without_a_tag_the_low_threshold_holds() -> None:
    metadata = {"include": [{"class": "dog", "count": 1}]}
    found = {"dog": np.array([[0, 0, 9, 9, 0.5]], np.float32)}
    assert judge(metadata, found, lambda name, numbers: []).is_correct
    assert not judge(metadata, found, lambda name, numbers: [], Rules(threshold=0.5)).is_correct
