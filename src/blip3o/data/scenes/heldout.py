"""Compositions that training never shows: evaluation tests composition instead of memory.

The lists depend only on the names of things, colors and backgrounds, never on a seed. They are
balanced: every color, and nearly every thing, is held out equally often.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from blip3o.core.rng import numpy_rng
from blip3o.data.scenes.things import BACKGROUNDS, COLORS, THINGS
from blip3o.data.scenes.types import Scene

_SEED = 20250514


def _shuffled(stream: str) -> list[str]:
    order = numpy_rng(_SEED, f"scenes/heldout/{stream}").permutation(len(THINGS))
    return [THINGS[int(k)] for k in order]


@functools.cache
def heldout_colors() -> frozenset[tuple[str, str]]:
    """Returns 32 of the 384 (thing, color) pairs; each color four times."""
    things = _shuffled("colors")[:32]
    return frozenset((thing, COLORS[k % len(COLORS)]) for k, thing in enumerate(things))


@functools.cache
def heldout_pairs() -> frozenset[tuple[str, str]]:
    """Returns 120 of the 1,128 pairs of different things, each pair sorted; five per thing."""
    things = _shuffled("pairs")
    count = len(things)
    pairs = {
        (things[k], things[(k + step) % count]) for step in (1, 2, count // 2) for k in range(count)
    }
    return frozenset((min(pair), max(pair)) for pair in pairs)


@functools.cache
def heldout_counts() -> frozenset[tuple[str, int]]:
    """Returns 16 of the 144 (thing, count) pairs with counts of two to four."""
    things = _shuffled("counts")[:16]
    return frozenset((thing, 2 + k % 3) for k, thing in enumerate(things))


@functools.cache
def heldout_backgrounds() -> frozenset[tuple[str, str]]:
    """Returns 48 of the 480 (thing, background) pairs; one per thing."""
    things = _shuffled("backgrounds")
    return frozenset((thing, BACKGROUNDS[k % len(BACKGROUNDS)]) for k, thing in enumerate(things))


Composition: TypeAlias = tuple[str, str, str | int]
"""Kind ("color", "pair", "count" or "background"), thing, and what it is combined with."""


@functools.cache
def heldout_compositions() -> tuple[Composition, ...]:
    """Returns all held-out compositions, sorted within their kinds."""
    return (
        *(("color", *one) for one in sorted(heldout_colors())),
        *(("pair", *one) for one in sorted(heldout_pairs())),
        *(("count", *one) for one in sorted(heldout_counts())),
        *(("background", *one) for one in sorted(heldout_backgrounds())),
    )


def heldout_in(
    looks: Sequence[tuple[str, str | None]], background: str | None
) -> list[Composition]:
    """Returns the held-out compositions of objects.

    Args:
        looks: thing and color of each object; None for a color that is left open.
        background: the background; None if it is left open.
    """
    things = Counter(thing for thing, _ in looks)
    shown: set[Composition] = {
        *(("color", thing, color) for thing, color in looks if color is not None),
        *(("pair", *pair) for pair in itertools.combinations(sorted(things), 2)),
        *(("count", *item) for item in things.items()),
    }
    if background is not None:
        shown |= {("background", thing, background) for thing in things}
    return sorted(shown & _all_heldout(), key=str)


@functools.cache
def _all_heldout() -> frozenset[Composition]:
    return frozenset(heldout_compositions())


def heldout_of(scene: Scene) -> list[Composition]:
    """Returns the held-out compositions in a scene."""
    return heldout_in([(one.thing, one.color) for one in scene.objects], scene.background)


def is_heldout(scene: Scene) -> bool:
    """Returns whether a scene shows a held-out composition."""
    return bool(heldout_of(scene))
