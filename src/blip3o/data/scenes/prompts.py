"""Prompts for evaluation: GenEval's six categories on held-out compositions.

The plain wordings also occur in training captions; the compositions do not. The held-out wordings
do not occur there either.

Reference:
    GenEval (arXiv 2310.11513) for the categories.
"""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypedDict, TypeVar

import numpy as np

from blip3o.core.errors import UsageError, unknown_name
from blip3o.core.rng import numpy_rng
from blip3o.data.scenes.frames import Wording
from blip3o.data.scenes.heldout import (
    Composition,
    heldout_backgrounds,
    heldout_colors,
    heldout_counts,
    heldout_in,
    heldout_pairs,
)
from blip3o.data.scenes.phrasing import Request, worded
from blip3o.data.scenes.things import BACKGROUNDS
from blip3o.data.scenes.types import RELATIONS
from blip3o.data.scenes.words import Group, pick, shuffled
from blip3o.data.scenes.world import FULL, World


class Include(TypedDict):
    """Objects that an image must show."""

    thing: str
    color: str | None
    count: int


@dataclass(frozen=True, kw_only=True)
class EvalPrompt:
    """A prompt, and the objects that an image for it must show."""

    category: str
    prompt: str
    include: tuple[Include, ...]
    relation: tuple[int, str, int] | None = None
    """(i, name, j): include[i] has this relation to include[j]."""
    background: str | None = None
    """The background that the prompt names; no rule checks it."""

    @property
    def heldout(self) -> list[Composition]:
        """The held-out compositions that every image for the prompt shows."""
        looks = [(one["thing"], one["color"]) for one in self.include for _ in range(one["count"])]
        return heldout_in(looks, self.background)


_Item = TypeVar("_Item", tuple[str, str], tuple[str, int])
"""A held-out composition."""


def eval_prompts(
    category: str,
    n: int = 100,
    seed: int = 0,
    world: World = FULL,
    wording: Wording = "template",
) -> list[EvalPrompt]:
    """Returns n different prompts of a category, all of held-out compositions.

    Args:
        category: one of CATEGORIES, or of WORDING_CATEGORIES.
        n: number of prompts, at most about 200 for the plain wordings.
        seed: seed of the random choices.
        world: the things, colors and numbers of objects that prompts may name.
        wording: "template" for the plain wordings, "train" for all that training uses, "heldout"
            for those that it never uses.

    Raises:
        UsageError: for an unknown category, or if it has fewer than n prompts.
    """
    if category not in _MAKERS:
        raise unknown_name("category", category, WORDING_CATEGORIES)
    rng = numpy_rng(seed, f"scenes/prompts/{category}")
    found: dict[str, EvalPrompt] = {}
    # Cycle through the held-out combinations, so each occurs equally often.
    for turn in range(20 * n):
        request = _MAKERS[category](rng, turn, world)
        text = worded(request, rng, wording)
        include = tuple(
            Include(thing=g.thing, color=g.color, count=g.count) for g in request.groups
        )
        prompt = EvalPrompt(
            category=category,
            prompt=text,
            include=include,
            relation=request.relation,
            background=request.background,
        )
        found.setdefault(text, prompt)
        if len(found) == n:
            return list(found.values())
    raise UsageError(f"category {category} has about {len(found)} different prompts, not {n}")


def _known_background(rng: np.random.Generator, things: list[str]) -> str:
    """Returns a background that occurs with these things in training."""
    excluded = {name for thing, name in heldout_backgrounds() if thing in things}
    return pick(rng, tuple(name for name in BACKGROUNDS if name not in excluded))


def _known_color(rng: np.random.Generator, thing: str, world: World) -> str:
    excluded = {color for name, color in heldout_colors() if name == thing}
    return pick(rng, tuple(color for color in world.colors if color not in excluded))


def _table(items: Iterable[_Item], category: str, holds: Callable[[_Item], bool]) -> list[_Item]:
    """Returns the sorted held-out compositions that a world holds.

    Raises:
        UsageError: if there are none.
    """
    table = sorted(item for item in items if holds(item))
    if not table:
        raise UsageError(f"this world of scenes has no held-out compositions of {category}")
    return table


def _single_object(rng: np.random.Generator, turn: int, world: World) -> Request:
    table = _table(heldout_backgrounds(), "single_object", lambda one: one[0] in world.things)
    thing, background = table[turn % len(table)]
    group = Group(thing=thing, color=None, count=1)
    return Request(groups=(group,), background=background)


def _two_object(
    rng: np.random.Generator, turn: int, world: World, *, colors: bool = False
) -> Request:
    named = _heldout_pair(rng, turn, world, colors=colors)
    return Request(groups=tuple(named))


def _heldout_pair(
    rng: np.random.Generator, turn: int, world: World, *, colors: bool = False
) -> list[Group]:
    table = _table(
        heldout_pairs(),
        "two objects",
        lambda pair: {*pair} <= {*world.things} and world.max_objects > 1,
    )
    # With a stride that is coprime to their number, the first hundred of 120 pairs cover all
    # things.
    stride = next(step for step in (7, 5, 1) if math.gcd(step, len(table)) == 1)
    pair = table[turn * stride % len(table)]
    things = pair if rng.random() < 0.5 else pair[::-1]
    return [
        Group(thing=thing, color=_known_color(rng, thing, world) if colors else None, count=1)
        for thing in things
    ]


def _counting(rng: np.random.Generator, turn: int, world: World) -> Request:
    table = _table(
        heldout_counts(),
        "counting",
        lambda one: one[0] in world.things and one[1] <= world.max_objects,
    )
    thing, count = table[turn % len(table)]
    color = _known_color(rng, thing, world) if rng.random() < 0.5 else None
    group = Group(thing=thing, color=color, count=count)
    background = _known_background(rng, [thing]) if rng.random() < 0.25 else None
    return Request(groups=(group,), background=background)


def _colors(rng: np.random.Generator, turn: int, world: World) -> Request:
    table = _table(
        heldout_colors(), "colors", lambda one: one[0] in world.things and one[1] in world.colors
    )
    thing, color = table[turn % len(table)]
    group = Group(thing=thing, color=color, count=1)
    background = _known_background(rng, [thing]) if rng.random() < 0.5 else None
    return Request(groups=(group,), background=background)


def _position(rng: np.random.Generator, turn: int, world: World) -> Request:
    named = _heldout_pair(rng, turn, world)
    return Request(groups=tuple(named), relation=(0, RELATIONS[turn % len(RELATIONS)], 1))


def _many(rng: np.random.Generator, turn: int, world: World) -> Request:
    """Returns three or four different things, two of them a held-out pair."""
    if world.max_objects < 3:
        raise UsageError("this world of scenes has no three objects")
    number = 3 + (turn % 2 if world.max_objects > 3 else 0)
    colors = rng.random() < 0.4
    named = _heldout_pair(rng, turn, world, colors=colors)
    for thing in shuffled(rng, world.things):
        if len(named) < number and thing not in [group.thing for group in named]:
            color = _known_color(rng, thing, world) if colors else None
            named.append(Group(thing=thing, color=color, count=1))
    return Request(groups=tuple(shuffled(rng, named)))


def _two_counts(rng: np.random.Generator, turn: int, world: World) -> Request:
    """Returns a held-out count of a thing, and another thing: "two red pears and a robot"."""
    table = _table(
        heldout_counts(),
        "two counts",
        lambda one: one[0] in world.things and one[1] < world.max_objects,
    )
    thing, count = table[turn % len(table)]
    colors = rng.random() < 0.5
    other = pick(rng, tuple(name for name in world.things if name != thing))
    other_count = int(rng.integers(1, world.max_objects - count + 1))
    named = [
        Group(thing=name, color=_known_color(rng, name, world) if colors else None, count=number)
        for name, number in ((thing, count), (other, other_count))
    ]
    return Request(groups=tuple(shuffled(rng, named)))


_MAKERS: dict[str, Callable[[np.random.Generator, int, World], Request]] = {
    "single_object": _single_object,
    "two_object": _two_object,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": functools.partial(_two_object, colors=True),
    "many": _many,
    "two_counts": _two_counts,
}
WORDING_CATEGORIES: tuple[str, ...] = tuple(_MAKERS)
"""GenEval's six categories, then two that only measure wordings: lists and counts of two things."""
CATEGORIES: tuple[str, ...] = WORDING_CATEGORIES[:6]
"""GenEval's six categories."""
