"""Prompts for evaluation: GenEval's six categories on held-out compositions.

The phrasings also occur in training captions; the combinations do not.

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
from blip3o.data.scenes.heldout import (
    heldout_backgrounds,
    heldout_colors,
    heldout_counts,
    heldout_pairs,
)
from blip3o.data.scenes.things import BACKGROUNDS
from blip3o.data.scenes.types import RELATIONS
from blip3o.data.scenes.words import Group, join, on_background, opened, phrase, pick, related
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


_Draw = tuple[str, list[Group], tuple[int, str, int] | None]
"""Words of a prompt, the groups that it names, and their relation (see `EvalPrompt`)."""
_Item = TypeVar("_Item", tuple[str, str], tuple[str, int])
"""A held-out composition."""


def eval_prompts(
    category: str, n: int = 100, seed: int = 0, world: World = FULL
) -> list[EvalPrompt]:
    """Returns n different prompts of a category, all of held-out compositions.

    Args:
        category: one of CATEGORIES.
        n: number of prompts, at most about 200.
        seed: seed of the random choices.
        world: the things, colors and numbers of objects that prompts may name.

    Raises:
        UsageError: for an unknown category, or if it has fewer than n prompts.
    """
    if category not in _MAKERS:
        raise unknown_name("category", category, CATEGORIES)
    rng = numpy_rng(seed, f"scenes/prompts/{category}")
    found: dict[str, EvalPrompt] = {}
    # Cycle through the held-out combinations, so each occurs equally often.
    for turn in range(20 * n):
        words, named, relation = _MAKERS[category](rng, turn, world)
        text = opened(rng, words)
        include = tuple(Include(thing=g.thing, color=g.color, count=g.count) for g in named)
        prompt = EvalPrompt(category=category, prompt=text, include=include, relation=relation)
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


def _single_object(rng: np.random.Generator, turn: int, world: World) -> _Draw:
    table = _table(heldout_backgrounds(), "single_object", lambda one: one[0] in world.things)
    thing, background = table[turn % len(table)]
    group = Group(thing=thing, color=None, count=1)
    return f"{phrase(group)} {on_background(background)}", [group], None


def _two_object(
    rng: np.random.Generator, turn: int, world: World, *, colors: bool = False
) -> _Draw:
    named = _heldout_pair(rng, turn, world, colors=colors)
    return join([phrase(group) for group in named]), named, None


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


def _counting(rng: np.random.Generator, turn: int, world: World) -> _Draw:
    table = _table(
        heldout_counts(),
        "counting",
        lambda one: one[0] in world.things and one[1] <= world.max_objects,
    )
    thing, count = table[turn % len(table)]
    color = _known_color(rng, thing, world) if rng.random() < 0.5 else None
    group = Group(thing=thing, color=color, count=count)
    words = phrase(group)
    if rng.random() < 0.25:
        words = f"{words} {on_background(_known_background(rng, [thing]))}"
    return words, [group], None


def _colors(rng: np.random.Generator, turn: int, world: World) -> _Draw:
    table = _table(
        heldout_colors(), "colors", lambda one: one[0] in world.things and one[1] in world.colors
    )
    thing, color = table[turn % len(table)]
    group = Group(thing=thing, color=color, count=1)
    words = phrase(group)
    if rng.random() < 0.5:
        words = f"{words} {on_background(_known_background(rng, [thing]))}"
    return words, [group], None


def _position(rng: np.random.Generator, turn: int, world: World) -> _Draw:
    named = _heldout_pair(rng, turn, world)
    relation = RELATIONS[turn % len(RELATIONS)]
    words = related(rng, phrase(named[0]), relation, phrase(named[1]))
    return words, named, (0, relation, 1)


_MAKERS: dict[str, Callable[[np.random.Generator, int, World], _Draw]] = {
    "single_object": _single_object,
    "two_object": _two_object,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": functools.partial(_two_object, colors=True),
}
CATEGORIES: tuple[str, ...] = tuple(_MAKERS)
"""GenEval's six categories."""
