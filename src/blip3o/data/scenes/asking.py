"""What kinds of questions share: the answer's type, and how things are named and chosen."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from blip3o.data.scenes.phrasing import pick
from blip3o.data.scenes.things import COLORS, THINGS, with_article
from blip3o.data.scenes.types import Placed, Scene
from blip3o.data.scenes.words import noun

HOW_MANY = ("How many {} are there?", "How many {} are in the image?")
IS_THERE = ("Is there {}?", "Is there {} in the image?", "Can you see {}?")


@dataclass(frozen=True, kw_only=True)
class QA:
    """A question and its answer."""

    kind: str
    question: str
    answer: str
    learned: tuple[tuple[int, int], ...] | None = None
    """(start, stop) of the parts of the answer that are worth learning; None for all of it."""


def named_uniquely(scene: Scene) -> list[tuple[Placed, str]]:
    """Returns each object that a name points to, with its shortest such name.

    "cat" where there is one cat, "red cat" where only one cat is red.
    """
    things = Counter(one.thing for one in scene.objects)
    looks = Counter((one.thing, one.color) for one in scene.objects)
    return [
        (one, one.thing if things[one.thing] == 1 else noun(one.thing, one.color))
        for one in scene.objects
        if looks[one.thing, one.color] == 1
    ]


def choose(rng: np.random.Generator, items: list[Placed]) -> Placed:
    """Returns one of some objects."""
    return items[int(rng.integers(len(items)))]


def single_objects(scene: Scene) -> list[Placed]:
    """Returns the objects whose thing is there once."""
    things = Counter(one.thing for one in scene.objects)
    return [one for one in scene.objects if things[one.thing] == 1]


def absent_thing(scene: Scene, rng: np.random.Generator) -> str:
    """Returns a thing that is not there."""
    there = {one.thing for one in scene.objects}
    return pick(rng, tuple(thing for thing in THINGS if thing not in there))


def is_there_thing(scene: Scene, rng: np.random.Generator, yes: bool) -> str:
    """Returns a question for a thing, to be answered yes or no."""
    there = {one.thing for one in scene.objects}
    thing = pick(rng, tuple(name for name in THINGS if (name in there) == yes))
    question = pick(rng, IS_THERE)
    return question.format(with_article(thing))


def is_there_look(scene: Scene, rng: np.random.Generator, yes: bool) -> str:
    """Returns a question for a thing in a color, to be answered yes or no."""
    looks = {(one.thing, one.color) for one in scene.objects}
    one = choose(rng, list(scene.objects))
    thing, color = one.thing, one.color
    if not yes:  # near misses: one of the two is right
        if rng.random() < 0.5:
            color = pick(rng, tuple(c for c in COLORS if (thing, c) not in looks))
        else:
            thing = pick(rng, tuple(t for t in THINGS if (t, color) not in looks))
    question = pick(rng, IS_THERE)
    return question.format(with_article(noun(thing, color)))
