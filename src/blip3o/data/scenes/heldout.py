"""Compositions that training never shows: evaluation tests composition instead of memory.

The lists depend only on the names of things, colors and backgrounds, never on a seed. They are
balanced: every color, and nearly every thing, is held out equally often.
"""

import functools
import itertools
from collections import Counter

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


def heldout_reasons(scene: Scene) -> list[str]:
    """Returns the kinds of held-out compositions in a scene: color, pair, count, background."""
    things = Counter(placed.thing for placed in scene.objects)
    pairs = itertools.combinations(sorted(things), 2)
    found = {
        "color": any((p.thing, p.color) in heldout_colors() for p in scene.objects),
        "pair": any(pair in heldout_pairs() for pair in pairs),
        "count": any(item in heldout_counts() for item in things.items()),
        "background": any((thing, scene.background) in heldout_backgrounds() for thing in things),
    }
    return [reason for reason, true in found.items() if true]


def is_heldout(scene: Scene) -> bool:
    """Returns whether a scene shows a held-out composition."""
    return bool(heldout_reasons(scene))
