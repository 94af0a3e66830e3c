from collections import Counter

import numpy as np
import pytest

from blip3o.core.errors import UsageError
from blip3o.data.scenes.heldout import (
    heldout_backgrounds,
    heldout_colors,
    heldout_counts,
    heldout_of,
    heldout_pairs,
    is_heldout,
)
from blip3o.data.scenes.render import render
from blip3o.data.scenes.scene import sample_groups, sample_scene
from blip3o.data.scenes.things import COLORS, RAMPS, THINGS, background_image
from blip3o.data.scenes.types import GAP, Placed, Scene, fits, place, relations, size_word


@pytest.fixture(scope="module")
def train() -> list[Scene]:
    return [sample_scene(0, index) for index in range(3000)]


def make(*objects: tuple[str, str, float, float, float], background: str = "white") -> Scene:
    placed = tuple(
        Placed(thing=thing, color=color, x=x, y=y, size=size)
        for thing, color, x, y, size in objects
    )
    return Scene(background=background, objects=placed)


def test_a_scene_depends_on_seed_index_and_split_only(train: list[Scene]) -> None:
    assert sample_scene(0, 7) == train[7]
    assert sample_scene(1, 7) != train[7]
    assert sample_scene(0, 7, "val") != train[7]
    assert len(set(train)) > 2990


def test_a_known_scene_does_not_change() -> None:
    # A published seed must give the same images forever.
    one = sample_scene(0, 0).objects[0]
    assert (one.thing, one.color) == ("diamond", "pink")


def test_objects_are_inside_and_keep_their_distance(train: list[Scene]) -> None:
    assert all(fits(scene.objects) for scene in train)
    near = make(("cat", "red", 0.3, 0.5, 0.3), ("dog", "red", 0.6 + GAP - 0.001, 0.5, 0.3))
    assert not fits(near.objects)
    assert not fits(make(("cat", "red", 0.16, 0.5, 0.3)).objects)


def test_one_to_four_objects_and_every_thing_color_and_place(train: list[Scene]) -> None:
    counts = Counter(len(scene.objects) for scene in train)
    assert set(counts) == {1, 2, 3, 4}
    assert min(counts.values()) > 400
    objects = [one for scene in train for one in scene.objects]
    assert {one.thing for one in objects} == set(THINGS)
    assert {one.color for one in objects} == set(COLORS)
    assert len({place(one) for one in objects}) == 9
    assert {size_word(one) for one in objects} == {"small", "medium", "large"}
    copies = [s for s in train if len(s.objects) > 1 and len({o.thing for o in s.objects}) == 1]
    assert len(copies) > 300


def test_relations_are_clear_or_absent(train: list[Scene]) -> None:
    for scene in train[:500]:
        for k, one in enumerate(scene.objects):
            for other in scene.objects[:k]:
                for apart in (abs(one.x - other.x), abs(one.y - other.y)):
                    assert apart < 0.1 or apart > 0.2
    left, right = make(("cat", "red", 0.27, 0.3, 0.3), ("dog", "red", 0.73, 0.7, 0.3)).objects
    assert relations(left, right) == ["left of", "above"]
    assert relations(right, left) == ["right of", "below"]


def test_training_never_shows_a_heldout_composition(train: list[Scene]) -> None:
    for scene in [*train, *(sample_scene(3, index, "val") for index in range(500))]:
        assert not is_heldout(scene)
        # Repeats the rule without the code under test.
        things = Counter(one.thing for one in scene.objects)
        for one in scene.objects:
            assert (one.thing, one.color) not in heldout_colors()
            assert (one.thing, scene.background) not in heldout_backgrounds()
        assert not set(things.items()) & heldout_counts()
        assert not {(a, b) for a in things for b in things} & heldout_pairs()


def test_the_heldout_split_always_shows_one_and_shows_all_kinds() -> None:
    reasons = Counter()
    for index in range(500):
        found = {kind for kind, *_ in heldout_of(sample_scene(0, index, "heldout"))}
        assert found
        reasons.update(found)
    assert set(reasons) == {"color", "pair", "count", "background"}
    assert min(reasons.values()) > 10


def test_groups_are_three_or_four_things_or_a_counted_thing_beside_another() -> None:
    seen = Counter()
    for index in range(300):
        scene = sample_groups(0, index, "train" if index % 3 else "val")
        assert not is_heldout(scene)
        looks = Counter((one.thing, one.color) for one in scene.objects)
        assert len({thing for thing, _ in looks}) == len(looks)
        seen[tuple(sorted(looks.values()))] += 1
        assert is_heldout(sample_groups(0, index, "heldout"))
    assert set(seen) == {(1, 1, 1), (1, 1, 1, 1), (1, 2), (1, 3), (2, 2)}
    assert min(seen.values()) > 10


def test_heldout_lists_are_balanced() -> None:
    assert len(heldout_colors()) == 32
    assert set(Counter(color for _, color in heldout_colors()).values()) == {4}
    assert len(heldout_pairs()) == 120
    assert set(Counter(thing for pair in heldout_pairs() for thing in pair).values()) == {5}
    assert len(heldout_counts()) == 16
    assert len(heldout_backgrounds()) == 48


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean train"):
        sample_scene(0, 0, "trian")


def test_an_image_shows_the_objects_and_nothing_else() -> None:
    scene = make(
        ("square", "red", 0.3, 0.3, 0.3), ("circle", "blue", 0.7, 0.7, 0.3), background="cream"
    )
    pixels = np.asarray(render(scene, 96)).astype(int)
    assert pixels.shape == (96, 96, 3)
    assert np.abs(pixels[29, 29] - RAMPS["red"][1]).max() < 30
    assert np.abs(pixels[67, 67] - RAMPS["blue"][1]).max() < 30
    empty = np.asarray(background_image("cream", 96)).astype(int)
    changed = np.abs(pixels - empty).max(-1) > 3
    for one in scene.objects:
        x, y, half = one.x * 96, one.y * 96, one.size * 48 + 1
        changed[int(y - half) : int(y + half) + 1, int(x - half) : int(x + half) + 1] = False
    assert not changed.any()


def test_equal_scenes_give_equal_bytes_at_any_size(train: list[Scene]) -> None:
    scene = train[5]
    assert render(scene, 96).tobytes() == render(scene, 96).tobytes()
    assert render(scene, 128).size == (128, 128)
