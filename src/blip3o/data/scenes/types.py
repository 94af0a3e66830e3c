"""A scene as plain data: a background and one to four objects that never touch."""

from dataclasses import dataclass

MARGIN = 0.02
"""Minimum distance from an object's box to the image's edge."""
GAP = 0.03
"""Minimum distance between the boxes of two objects."""
RELATION_MARGIN = 0.2
"""Minimum distance of two centers for one to be called left of, or above, the other."""
SMALL_BELOW, LARGE_FROM = 0.28, 0.37
"""Limits of the size words small, medium and large."""

RELATIONS = ("left of", "right of", "above", "below")
PLACES = (
    *("top left", "top", "top right", "left", "center", "right"),
    *("bottom left", "bottom", "bottom right"),
)
# Sampled centers are far from the limits between places (see scene.py).
_LOW, _HIGH = 0.385, 0.615


@dataclass(frozen=True, kw_only=True)
class Placed:
    """One object of a scene."""

    thing: str
    """A name of `things.THINGS`."""
    color: str
    """A name of `things.COLORS`."""
    x: float
    """Center from the left, as a share of the image's side."""
    y: float
    """Center from the top, as a share of the image's side."""
    size: float
    """Longer side, as a share of the image's side; the box is a square of this side."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A background and one to four objects."""

    background: str
    """A name of `things.BACKGROUNDS`."""
    objects: tuple[Placed, ...]


def place(placed: Placed) -> str:
    """Returns the place of an object, one of PLACES."""
    column = 0 if placed.x < _LOW else 2 if placed.x > _HIGH else 1
    row = 0 if placed.y < _LOW else 2 if placed.y > _HIGH else 1
    return PLACES[row * 3 + column]


def size_word(placed: Placed) -> str:
    """Returns "small", "medium" or "large"."""
    if placed.size < SMALL_BELOW:
        return "small"
    return "large" if placed.size >= LARGE_FROM else "medium"


def relations(first: Placed, second: Placed) -> list[str]:
    """Returns all RELATIONS that the first object clearly has to the second."""
    found = []
    if abs(first.x - second.x) >= RELATION_MARGIN:
        found.append("left of" if first.x < second.x else "right of")
    if abs(first.y - second.y) >= RELATION_MARGIN:
        found.append("above" if first.y < second.y else "below")
    return found


def fits(objects: tuple[Placed, ...]) -> bool:
    """Returns whether all boxes are inside the image and far enough from each other."""
    for k, one in enumerate(objects):
        reach = 0.5 - MARGIN - one.size / 2
        if max(abs(one.x - 0.5), abs(one.y - 0.5)) > reach + 1e-9:
            return False
        for other in objects[:k]:
            apart = max(abs(one.x - other.x), abs(one.y - other.y))
            if apart < (one.size + other.size) / 2 + GAP - 1e-9:
                return False
    return True
