"""Prompts for evaluation: GenEval's six categories on held-out compositions.

The phrasings also occur in training captions; the combinations do not.

Reference:
    GenEval (arXiv 2310.11513) for the categories.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from blip3o.core.errors import UsageError, unknown_name
from blip3o.core.rng import numpy_rng
from blip3o.data.scenes.heldout import (
    heldout_backgrounds,
    heldout_colors,
    heldout_counts,
    heldout_pairs,
)
from blip3o.data.scenes.things import BACKGROUNDS, COLORS
from blip3o.data.scenes.types import RELATIONS
from blip3o.data.scenes.words import Group, join, on_background, opened, phrase, pick, related


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


def eval_prompts(category: str, n: int = 100, seed: int = 0) -> list[EvalPrompt]:
    """Returns n different prompts of a category, all of held-out compositions.

    Args:
        category: one of CATEGORIES.
        n: number of prompts, at most about 200.
        seed: seed of the random choices.

    Raises:
        UsageError: for an unknown category, or if it has fewer than n prompts.
    """
    if category not in _MAKERS:
        raise unknown_name("category", category, CATEGORIES)
    rng = numpy_rng(seed, f"scenes/prompts/{category}")
    found: dict[str, EvalPrompt] = {}
    # Cycle through the held-out combinations, so each occurs equally often.
    for turn in range(20 * n):
        words, named, relation = _MAKERS[category](rng, turn)
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


def _known_color(rng: np.random.Generator, thing: str) -> str:
    excluded = {color for name, color in heldout_colors() if name == thing}
    return pick(rng, tuple(color for color in COLORS if color not in excluded))


def _single_object(rng: np.random.Generator, turn: int) -> _Draw:
    table = sorted(heldout_backgrounds())
    thing, background = table[turn % len(table)]
    group = Group(thing=thing, color=None, count=1)
    return f"{phrase(group)} {on_background(background)}", [group], None


def _two_object(rng: np.random.Generator, turn: int, *, colors: bool = False) -> _Draw:
    named = _heldout_pair(rng, turn, colors=colors)
    return join([phrase(group) for group in named]), named, None


def _heldout_pair(rng: np.random.Generator, turn: int, *, colors: bool = False) -> list[Group]:
    table = sorted(heldout_pairs())
    # The stride is coprime to 120, so the first hundred pairs cover all things.
    pair = table[turn * 7 % len(table)]
    things = pair if rng.random() < 0.5 else pair[::-1]
    return [
        Group(thing=thing, color=_known_color(rng, thing) if colors else None, count=1)
        for thing in things
    ]


def _counting(rng: np.random.Generator, turn: int) -> _Draw:
    table = sorted(heldout_counts())
    thing, count = table[turn % len(table)]
    color = _known_color(rng, thing) if rng.random() < 0.5 else None
    group = Group(thing=thing, color=color, count=count)
    words = phrase(group)
    if rng.random() < 0.25:
        words = f"{words} {on_background(_known_background(rng, [thing]))}"
    return words, [group], None


def _colors(rng: np.random.Generator, turn: int) -> _Draw:
    table = sorted(heldout_colors())
    thing, color = table[turn % len(table)]
    group = Group(thing=thing, color=color, count=1)
    words = phrase(group)
    if rng.random() < 0.5:
        words = f"{words} {on_background(_known_background(rng, [thing]))}"
    return words, [group], None


def _position(rng: np.random.Generator, turn: int) -> _Draw:
    named = _heldout_pair(rng, turn)
    relation = RELATIONS[turn % len(RELATIONS)]
    words = related(rng, phrase(named[0]), relation, phrase(named[1]))
    return words, named, (0, relation, 1)


_MAKERS: dict[str, Callable[[np.random.Generator, int], _Draw]] = {
    "single_object": _single_object,
    "two_object": _two_object,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": functools.partial(_two_object, colors=True),
}
CATEGORIES: tuple[str, ...] = tuple(_MAKERS)
"""GenEval's six categories."""
