"""The part of the vocabulary that scenes use: all of it, or a small world for small experiments."""

import dataclasses
from typing import Final

from blip3o.core.errors import unknown_name
from blip3o.data.scenes.things import COLORS, THINGS

MOST_OBJECTS: Final = 4
"""Largest number of objects in a scene."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """The things and colors of scenes, and how many objects a scene has.

    Held-out compositions stay the same in every world: a small world holds out those of its own
    things.

    Args:
        things: names from `THINGS`, at least one more than `max_objects`, so that an object can be
            exchanged for another one.
        colors: names from `COLORS`, at least two.
        max_objects: largest number of objects, 1 to 4.

    Raises:
        UsageError: for an unknown thing or color.
        ValueError: for too few names, a repeated name, or a wrong number of objects.
    """

    things: tuple[str, ...] = THINGS
    colors: tuple[str, ...] = COLORS
    max_objects: int = MOST_OBJECTS

    def __post_init__(self) -> None:
        if not 1 <= self.max_objects <= MOST_OBJECTS:
            raise ValueError(f"max_objects must be 1 to {MOST_OBJECTS}, got {self.max_objects}")
        _check_names("thing", self.things, THINGS, self.max_objects + 1)
        _check_names("color", self.colors, COLORS, 2)


def _check_names(what: str, names: tuple[str, ...], known: tuple[str, ...], least: int) -> None:
    for name in names:
        if name not in known:
            raise unknown_name(what, name, known)
    if len(set(names)) < max(least, len(names)):
        raise ValueError(f"this world needs at least {least} different {what}s, got {list(names)}")


FULL = World()
"""Everything."""
