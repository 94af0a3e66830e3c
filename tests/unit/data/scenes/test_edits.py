from collections import Counter
from dataclasses import replace

import pytest

from blip3o.data.scenes.edits import KINDS, MAX_SHIFT, Edit, sample_chain, sample_edit
from blip3o.data.scenes.heldout import is_heldout
from blip3o.data.scenes.types import Scene, fits, place


@pytest.fixture(scope="module")
def edits() -> list[Edit]:
    return [sample_edit(0, index) for index in range(600)]


def seen(scene: Scene) -> list[tuple[str, str, float, float]]:
    return [(one.thing, one.color, one.x, one.y) for one in scene.objects]


def of_kind(edits: list[Edit], kind: str) -> list[Edit]:
    return [edit for edit in edits if edit.kind == kind]


def test_edits_depend_on_their_arguments_only(edits: list[Edit]) -> None:
    assert sample_edit(0, 3) == edits[3]
    assert sample_edit(1, 3) != edits[3]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_edits_of_a_chain_build_on_each_other(split: str) -> None:
    lengths = Counter[int]()
    for index in range(60):
        chain = sample_chain(0, index, split)
        assert chain == sample_chain(0, index, split)
        lengths[len(chain)] += 1
        scenes = [chain[0].source, *(edit.target for edit in chain)]
        assert [edit.source for edit in chain] == scenes[:-1]
        assert all(scene not in scenes[:k] for k, scene in enumerate(scenes))
        assert any(map(is_heldout, scenes)) == (split == "heldout")
        assert all(edit.accepts(seen(edit.target)) for edit in chain)
    assert set(lengths) == {2, 3}


def test_all_kinds_are_about_as_frequent(edits: list[Edit]) -> None:
    counts = Counter(edit.kind for edit in edits)
    assert set(counts) == set(KINDS)
    assert min(counts.values()) > 80


def test_objects_the_instruction_does_not_name_stay_the_same(edits: list[Edit]) -> None:
    for edit in edits:
        before, after = Counter(edit.source.objects), Counter(edit.target.objects)
        gone, new = before - after, after - before
        assert edit.source.background == edit.target.background
        assert fits(edit.target.objects)
        if edit.instruction.startswith(("make all", "change the color of all")):
            assert before.total() == gone.total() == new.total()
        else:
            expected = {"remove": (1, 0), "add": (0, 1)}.get(edit.kind, (1, 1))
            assert (gone.total(), new.total()) == expected, edit


@pytest.mark.parametrize("kind", ["recolor", "remove", "swap", "move"])
def test_the_instruction_points_to_one_object(edits: list[Edit], kind: str) -> None:
    for edit in of_kind(edits, kind):
        (gone, *others) = (Counter(edit.source.objects) - Counter(edit.target.objects)).elements()
        if others:
            continue
        assert gone.thing in edit.instruction
        same = [o for o in edit.source.objects if o.thing == gone.thing]
        if len(same) > 1:
            assert f"{gone.color} {gone.thing}" in edit.instruction
            assert [o.color for o in same].count(gone.color) == 1


def test_added_and_moved_objects_are_where_the_instruction_says(edits: list[Edit]) -> None:
    for edit in [*of_kind(edits, "add"), *of_kind(edits, "move")]:
        (new,) = (Counter(edit.target.objects) - Counter(edit.source.objects)).elements()
        assert edit.instruction.endswith(f"the {place(new)}"), edit


def test_only_the_heldout_split_shows_heldout_compositions(edits: list[Edit]) -> None:
    for edit in edits:
        assert not is_heldout(edit.source)
        assert not is_heldout(edit.target)
    for index in range(200):
        edit = sample_edit(0, index, "heldout")
        assert is_heldout(edit.source) or is_heldout(edit.target)


def test_the_target_is_accepted_and_the_source_is_not(edits: list[Edit]) -> None:
    for edit in edits:
        assert edit.accepts(seen(edit.target))
        assert edit.accepts(seen(edit.target)[::-1])
        assert not edit.accepts(seen(edit.source))
        assert not edit.accepts(seen(edit.target)[1:])


def test_fixed_objects_must_not_move_and_moved_ones_may_be_anywhere_in_their_place(
    edits: list[Edit],
) -> None:
    recolor = of_kind(edits, "recolor")[0]
    one = recolor.target.objects[0]
    rest = seen(recolor.target)[1:]
    away = 0.5 if abs(one.x - 0.5) > MAX_SHIFT else one.x + MAX_SHIFT + 0.01
    assert not recolor.accepts([(one.thing, one.color, away, one.y), *rest])
    move = of_kind(edits, "move")[0]
    (new,) = (Counter(move.target.objects) - Counter(move.source.objects)).elements()
    others = [one for one in seen(move.target) if one != (new.thing, new.color, new.x, new.y)]
    toward = 0.05 if new.x < 0.4 else 0.95 if new.x > 0.6 else 0.56
    assert place(replace(new, x=toward)) == place(new)
    assert move.accepts([*others, (new.thing, new.color, toward, new.y)])
