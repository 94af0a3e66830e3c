"""A small world: fewer things and objects, the same held-out compositions."""

import dataclasses
from pathlib import Path

import pytest

from blip3o.core.errors import UsageError
from blip3o.data.scenes.edits import sample_chain, sample_edit
from blip3o.data.scenes.export import export_scenes
from blip3o.data.scenes.heldout import heldout_pairs, is_heldout
from blip3o.data.scenes.prompts import CATEGORIES, eval_prompts
from blip3o.data.scenes.scene import sample_groups, sample_pair, sample_scene
from blip3o.data.scenes.types import Scene
from blip3o.data.scenes.world import World

SMALL = World(
    things=("cactus", "car", "cat", "chair", "crown", "fish", "penguin", "turtle"),
    colors=("red", "blue", "green", "yellow"),
    max_objects=2,
)


def check(scene: Scene, world: World) -> None:
    assert len(scene.objects) <= world.max_objects
    assert {one.thing for one in scene.objects} <= {*world.things}
    assert {one.color for one in scene.objects} <= {*world.colors}


@pytest.mark.parametrize("split", ["train", "val", "heldout"])
def test_scenes_pairs_and_edits_stay_in_their_world(split: str) -> None:
    for index in range(150):
        scene = sample_scene(0, index, split, SMALL)
        check(scene, SMALL)
        assert is_heldout(scene) == (split == "heldout")
        check(sample_pair(0, index, split, SMALL), SMALL)
        edit = sample_edit(0, index, split, SMALL)
        check(edit.source, SMALL)
        check(edit.target, SMALL)
        for step in sample_chain(0, index, split, SMALL):
            check(step.target, SMALL)


def test_groups_need_a_world_of_three_objects(tmp_path: Path) -> None:
    three = dataclasses.replace(SMALL, max_objects=3)
    for index in range(50):
        scene = sample_groups(0, index, world=three)
        check(scene, three)
        assert len(scene.objects) == 3
    with pytest.raises(UsageError, match="groups need scenes of three objects"):
        export_scenes(tmp_path, 0, num_groups=1, world=SMALL)
    assert not list(tmp_path.iterdir())


def test_a_small_world_shows_everything_it_has() -> None:
    scenes = [sample_scene(0, index, world=SMALL) for index in range(400)]
    assert {one.thing for scene in scenes for one in scene.objects} == {*SMALL.things}
    assert {one.color for scene in scenes for one in scene.objects} == {*SMALL.colors}
    assert {len(scene.objects) for scene in scenes} == {1, 2}


@pytest.mark.parametrize("category", CATEGORIES)
def test_prompts_stay_in_their_world_and_are_held_out_there(category: str) -> None:
    known = {prompt.prompt for prompt in eval_prompts(category, 12, 0, SMALL)}
    assert len(known) == 12
    for prompt in eval_prompts(category, 12, 0, SMALL):
        assert {item["thing"] for item in prompt.include} <= {*SMALL.things}
        assert {item["color"] for item in prompt.include} <= {*SMALL.colors, None}
        assert sum(item["count"] for item in prompt.include) <= SMALL.max_objects


def test_every_held_out_pair_of_a_small_world_is_asked_for() -> None:
    # The order of the pairs is a stride through their table, which must reach all of them.
    for count in range(4, 9):
        things = SMALL.things[:count]
        held_out = {pair for pair in heldout_pairs() if {*pair} <= {*things}}
        world = World(things=things, max_objects=2)
        prompts = eval_prompts("two_object", 2 * len(held_out), 0, world)
        asked = {tuple(sorted(item["thing"] for item in one.include)) for one in prompts}
        assert asked == held_out


def test_a_world_without_held_out_compositions_is_refused() -> None:
    alone = World(things=("cat", "dog"), max_objects=1)
    with pytest.raises(UsageError, match="no held-out compositions of two objects"):
        eval_prompts("two_object", 1, 0, alone)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"things": ("cat", "dgo", "car")}, UsageError, "dog"),
        ({"colors": ("red", "blu")}, UsageError, "blue"),
        ({"colors": ("red",)}, ValueError, "at least 2 different colors"),
        ({"things": ("cat", "cat", "dog"), "max_objects": 1}, ValueError, "different things"),
        ({"things": ("cat", "dog")}, ValueError, "at least 5 different things"),
        ({"max_objects": 5}, ValueError, "max_objects must be 1 to 4"),
    ],
)
def test_bad_worlds_are_refused(fields: dict[str, object], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        World(**fields)  # pyrefly: ignore


def test_an_export_remembers_its_world(tmp_path: Path) -> None:
    export_scenes(tmp_path, 2, world=SMALL, num_processes=1)
    export_scenes(tmp_path, 2, world=SMALL, num_processes=1)  # the same call goes on
    with pytest.raises(UsageError, match="choose another folder"):
        export_scenes(tmp_path, 2, num_processes=1)
