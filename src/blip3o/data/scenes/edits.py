"""Edits: an image, an instruction, and the edited image, which is otherwise unchanged."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from blip3o.core.rng import numpy_rng
from blip3o.data.scenes.heldout import is_heldout
from blip3o.data.scenes.scene import PLACE_CENTERS, SIZES, check_split, draw_scene
from blip3o.data.scenes.things import plural, with_article
from blip3o.data.scenes.types import Placed, Scene, fits, place
from blip3o.data.scenes.words import PLACE_PHRASES, named_uniquely, noun, pick
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


def sample_edit(seed: int, index: int, split: str = "train", world: World = FULL) -> Edit:
    """Returns edit `index` of an endless data set; depends only on the arguments.

    Args:
        seed: the data set's seed.
        index: number of the edit, >= 0.
        split: in "train" and "val" neither image shows a held-out composition; in "heldout" at
            least one does.
        world: the things, colors and numbers of objects to draw from.

    Raises:
        UsageError: for an unknown split.
    """
    check_split(split)
    rng = numpy_rng(seed, f"scenes/edits/{split}", index)
    kind = pick(rng, KINDS)
    while True:
        source = draw_scene(rng, world)
        made = _MAKERS[kind](source, rng, world)
        if made is None:
            continue
        target = replace(source, objects=made[0])
        if (is_heldout(source) or is_heldout(target)) == (split == "heldout"):
            return Edit(kind=kind, source=source, target=target, instruction=made[1])


def sample_chain(
    seed: int, index: int, split: str = "train", world: World = FULL
) -> tuple[Edit, ...]:
    """Returns chain `index` of an endless data set: two or three edits that build on each other.

    The arguments and the error are those of `sample_edit`. In "train" and "val" no image of the
    chain shows a held-out composition; in "heldout" at least one does.
    """
    check_split(split)
    rng = numpy_rng(seed, f"scenes/chains/{split}", index)
    length = int(rng.integers(2, 4))
    while True:
        scenes, edits = [draw_scene(rng, world)], list[Edit]()
        for _ in range(_MOST_TRIES):
            kind = pick(rng, KINDS)
            made = _MAKERS[kind](scenes[-1], rng, world)
            target = None if made is None else replace(scenes[-1], objects=made[0])
            if made is None or target is None or target in scenes:  # a way back teaches nothing
                continue
            edits.append(Edit(kind=kind, source=scenes[-1], target=target, instruction=made[1]))
            scenes.append(target)
            if len(edits) == length:
                if any(map(is_heldout, scenes)) == (split == "heldout"):
                    return tuple(edits)
                break


_Made = tuple[tuple[Placed, ...], str]
"""Objects of the edited scene, and the instruction."""


def _choose(scene: Scene, rng: np.random.Generator) -> tuple[Placed, str] | None:
    """Returns an object with a unique name, and that name, sometimes with a redundant color."""
    named = named_uniquely(scene)
    if not named:
        return None
    one, name = pick(rng, named)
    return one, noun(one.thing, one.color) if rng.random() < 0.4 else name


def _exchange(scene: Scene, old: Placed, new: Placed) -> tuple[Placed, ...]:
    return tuple(new if one is old else one for one in scene.objects)


def _recolor(scene: Scene, rng: np.random.Generator, world: World) -> _Made | None:
    color = pick(rng, world.colors)
    if any(one.color == color for one in scene.objects):
        return None
    looks = {(one.thing, one.color) for one in scene.objects}
    if len(looks) == 1 and len(scene.objects) > 1:
        name = plural(scene.objects[0].thing)
        objects = tuple(replace(one, color=color) for one in scene.objects)
        options = (f"make all {name} {color}", f"change the color of all {name} to {color}")
        return objects, pick(rng, options)
    chosen = _choose(scene, rng)
    if chosen is None:
        return None
    one, name = chosen
    options = (
        *(f"make the {name} {color}", f"turn the {name} {color}", f"paint the {name} {color}"),
        *(f"change the color of the {name} to {color}", f"recolor the {name} to {color}"),
    )
    return _exchange(scene, one, replace(one, color=color)), pick(rng, options)


def _remove(scene: Scene, rng: np.random.Generator, world: World) -> _Made | None:
    del world
    chosen = _choose(scene, rng)
    if chosen is None or len(scene.objects) == 1:
        return None
    one, name = chosen
    options = (
        *(f"remove the {name}", f"delete the {name}", f"take away the {name}"),
        f"erase the {name} from the image",
    )
    return tuple(other for other in scene.objects if other is not one), pick(rng, options)


def _add(scene: Scene, rng: np.random.Generator, world: World) -> _Made | None:
    thing = pick(rng, world.things)
    if len(scene.objects) >= world.max_objects or any(one.thing == thing for one in scene.objects):
        return None
    where = pick(rng, tuple(PLACE_CENTERS))
    x, y = PLACE_CENTERS[where]
    size = SIZES[pick(rng, ("medium", "small"))]
    new = Placed(thing=thing, color=pick(rng, world.colors), x=x, y=y, size=size)
    if not fits((*scene.objects, new)):
        return None
    words = f"{with_article(noun(thing, new.color))} {PLACE_PHRASES[where]}"
    return (*scene.objects, new), pick(rng, (f"add {words}", f"put {words}", f"draw {words}"))


def _swap(scene: Scene, rng: np.random.Generator, world: World) -> _Made | None:
    chosen = _choose(scene, rng)
    thing = pick(rng, world.things)
    if chosen is None or any(one.thing == thing for one in scene.objects):
        return None
    one, name = chosen
    color = one.color if rng.random() < 0.5 else pick(rng, world.colors)
    new = with_article(noun(thing, color))
    options = (
        *(f"replace the {name} with {new}", f"swap the {name} for {new}"),
        *(f"change the {name} into {new}", f"turn the {name} into {new}"),
    )
    return _exchange(scene, one, replace(one, thing=thing, color=color)), pick(rng, options)


def _move(scene: Scene, rng: np.random.Generator, world: World) -> _Made | None:
    del world
    chosen = _choose(scene, rng)
    if chosen is None:
        return None
    one, name = chosen
    where = pick(rng, tuple(PLACE_CENTERS))
    x, y = PLACE_CENTERS[where]
    objects = _exchange(scene, one, replace(one, x=x, y=y))
    if place(one) == where or not fits(objects):
        return None
    options = (
        *(f"move the {name} to the {where}", f"shift the {name} to the {where}"),
        f"place the {name} {PLACE_PHRASES[where]}",
    )
    return objects, pick(rng, options)


_MAKERS: dict[str, Callable[[Scene, np.random.Generator, World], _Made | None]] = {
    "recolor": _recolor,
    "remove": _remove,
    "add": _add,
    "swap": _swap,
    "move": _move,
}
KINDS: tuple[str, ...] = tuple(_MAKERS)
"""Kinds of edits."""
