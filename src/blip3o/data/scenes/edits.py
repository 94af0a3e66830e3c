"""Edits: an image, an instruction, and the edited image, which is otherwise unchanged."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from blip3o.core.rng import numpy_rng
from blip3o.data.scenes.frames import Wording, frames
from blip3o.data.scenes.heldout import is_heldout
from blip3o.data.scenes.question_forms import Say
from blip3o.data.scenes.scene import PLACE_CENTERS, SIZES, check_split, draw_scene
from blip3o.data.scenes.things import with_article
from blip3o.data.scenes.types import Placed, Scene, fits, place
from blip3o.data.scenes.words import named_uniquely, pick
from blip3o.data.scenes.world import FULL, World

_MOST_TRIES = 50
"""Draws of an edit after which a chain begins anew; a crowded scene may allow none."""
MAX_SHIFT = 0.12
"""Tolerance for the position of an object that must not move, as a share of the image's side."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """An instruction with the scene before and after it."""

    kind: str
    """One of KINDS."""
    source: Scene
    target: Scene
    instruction: str

    def accepts(self, found: Sequence[tuple[str, str, float, float]]) -> bool:
        """Returns whether an image shows the target.

        The image must show exactly the target's objects, each with its thing and color. An added
        or moved object may be anywhere in the place that the instruction names. The other objects
        must be at their old places.

        Args:
            found: (thing, color, x, y) of every object in the image, centers as shares of the side.
        """
        wanted = self.target.objects
        if len(found) != len(wanted):
            return False
        fixed = {(one.x, one.y) for one in self.source.objects}
        return any(
            all(
                _matches(one, seen, fixed=(one.x, one.y) in fixed)
                for one, seen in zip(wanted, order, strict=True)
            )
            for order in itertools.permutations(found)
        )


def _matches(one: Placed, seen: tuple[str, str, float, float], *, fixed: bool) -> bool:
    thing, color, x, y = seen
    if (thing, color) != (one.thing, one.color):
        return False
    if not fixed and place(replace(one, x=x, y=y)) == place(one):
        return True
    return max(abs(x - one.x), abs(y - one.y)) <= MAX_SHIFT


def sample_edit(
    seed: int,
    index: int,
    split: str = "train",
    world: World = FULL,
    wording: Wording = "template",
) -> Edit:
    """Returns edit `index` of an endless data set; depends only on the arguments.

    Args:
        seed: the data set's seed.
        index: number of the edit, >= 0.
        split: in "train" and "val" neither image shows a held-out composition; in "heldout" at
            least one does.
        world: the things, colors and numbers of objects to draw from.
        wording: the frames of the instruction.

    Raises:
        UsageError: for an unknown split.
    """
    check_split(split)
    rng = numpy_rng(seed, f"scenes/edits/{split}", index)
    say = Say(rng=rng, is_plain=wording == "template")
    kind = pick(rng, KINDS)
    while True:
        source = draw_scene(rng, world)
        edit = _edited(kind, source, say, world, wording)
        if edit is None:
            continue
        if (is_heldout(source) or is_heldout(edit.target)) == (split == "heldout"):
            return edit


def sample_chain(
    seed: int,
    index: int,
    split: str = "train",
    world: World = FULL,
    wording: Wording = "template",
) -> tuple[Edit, ...]:
    """Returns chain `index` of an endless data set: two or three edits that build on each other.

    The arguments and the error are those of `sample_edit`. In "train" and "val" no image of the
    chain shows a held-out composition; in "heldout" at least one does.
    """
    check_split(split)
    rng = numpy_rng(seed, f"scenes/chains/{split}", index)
    say = Say(rng=rng, is_plain=wording == "template")
    length = int(rng.integers(2, 4))
    while True:
        scenes, edits = [draw_scene(rng, world)], list[Edit]()
        for _ in range(_MOST_TRIES):
            kind = pick(rng, KINDS)
            edit = _edited(kind, scenes[-1], say, world, wording)
            if edit is None or edit.target in scenes:  # a way back teaches nothing
                continue
            edits.append(edit)
            scenes.append(edit.target)
            if len(edits) == length:
                if any(map(is_heldout, scenes)) == (split == "heldout"):
                    return tuple(edits)
                break


_Made = tuple[tuple[Placed, ...], str, dict[str, str]]
"""Objects of the edited scene, a section of frames/edits.txt, and words for the gaps of a frame."""


def _edited(kind: str, source: Scene, say: Say, world: World, wording: Wording) -> Edit | None:
    """Returns an edit of a kind, or None if this draw does not suit the scene."""
    made = _MAKERS[kind](source, say, world)
    if made is None:
        return None
    objects, section, gaps = made
    instruction = pick(say.rng, frames("edits", section, wording)).format(**gaps)
    target = replace(source, objects=objects)
    return Edit(kind=kind, source=source, target=target, instruction=instruction)


def _choose(scene: Scene, say: Say) -> tuple[Placed, str] | None:
    """Returns an object with a unique name, and that name, sometimes with a redundant color."""
    named = named_uniquely(scene)
    if not named:
        return None
    one, name = pick(say.rng, named)
    has_color = say.rng.random() < 0.4 or name != one.thing
    return one, say.noun(one.thing, one.color if has_color else None)


def _exchange(scene: Scene, old: Placed, new: Placed) -> tuple[Placed, ...]:
    return tuple(new if one is old else one for one in scene.objects)


def _recolor(scene: Scene, say: Say, world: World) -> _Made | None:
    color = pick(say.rng, world.colors)
    if any(one.color == color for one in scene.objects):
        return None
    looks = {(one.thing, one.color) for one in scene.objects}
    if len(looks) == 1 and len(scene.objects) > 1:
        names = say.noun(scene.objects[0].thing, None, len(scene.objects))
        objects = tuple(replace(one, color=color) for one in scene.objects)
        return objects, "recolor all", {"names": names, "color": say.color(color)}
    chosen = _choose(scene, say)
    if chosen is None:
        return None
    one, name = chosen
    objects = _exchange(scene, one, replace(one, color=color))
    return objects, "recolor", {"name": name, "color": say.color(color)}


def _remove(scene: Scene, say: Say, world: World) -> _Made | None:
    del world
    chosen = _choose(scene, say)
    if chosen is None or len(scene.objects) == 1:
        return None
    one, name = chosen
    return tuple(o for o in scene.objects if o is not one), "remove", {"name": name}


def _add(scene: Scene, say: Say, world: World) -> _Made | None:
    thing = pick(say.rng, world.things)
    if len(scene.objects) >= world.max_objects or any(one.thing == thing for one in scene.objects):
        return None
    where = pick(say.rng, tuple(PLACE_CENTERS))
    x, y = PLACE_CENTERS[where]
    size = SIZES[pick(say.rng, ("medium", "small"))]
    new = Placed(thing=thing, color=pick(say.rng, world.colors), x=x, y=y, size=size)
    if not fits((*scene.objects, new)):
        return None
    words = with_article(say.noun(thing, new.color))
    return (*scene.objects, new), "add", {"new": words, "where": say.where(where)}


def _swap(scene: Scene, say: Say, world: World) -> _Made | None:
    chosen = _choose(scene, say)
    thing = pick(say.rng, world.things)
    if chosen is None or any(one.thing == thing for one in scene.objects):
        return None
    one, name = chosen
    color = one.color if say.even() else pick(say.rng, world.colors)
    objects = _exchange(scene, one, replace(one, thing=thing, color=color))
    return objects, "swap", {"name": name, "new": with_article(say.noun(thing, color))}


def _move(scene: Scene, say: Say, world: World) -> _Made | None:
    del world
    chosen = _choose(scene, say)
    if chosen is None:
        return None
    one, name = chosen
    where = pick(say.rng, tuple(PLACE_CENTERS))
    x, y = PLACE_CENTERS[where]
    objects = _exchange(scene, one, replace(one, x=x, y=y))
    if place(one) == where or not fits(objects):
        return None
    return objects, "move", {"name": name, "place": say.place(where), "where": say.where(where)}


_MAKERS: dict[str, Callable[[Scene, Say, World], _Made | None]] = {
    "recolor": _recolor,
    "remove": _remove,
    "add": _add,
    "swap": _swap,
    "move": _move,
}
KINDS: tuple[str, ...] = tuple(_MAKERS)
"""Kinds of edits."""
