"""Samples scenes. There are few kinds of layout, so a tiny model can learn them."""

import numpy as np

from blip3o.core.errors import UsageError, unknown_name
from blip3o.core.rng import numpy_rng
from blip3o.data.scenes.heldout import is_heldout
from blip3o.data.scenes.things import BACKGROUNDS
from blip3o.data.scenes.types import GAP, MARGIN, PLACES, Placed, Scene, fits
from blip3o.data.scenes.words import pick
from blip3o.data.scenes.world import FULL, World

SPLITS = ("train", "val", "heldout")
SIZES = {"small": 0.24, "medium": 0.32, "large": 0.42}
LOW, MIDDLE, HIGH = 0.27, 0.5, 0.73
"""Coordinates of the centers of a three by three grid of places, before jitter."""
JITTER, SIZE_JITTER = 0.01, 0.01

Point = tuple[float, float]
PLACE_CENTERS: dict[str, Point] = dict(
    zip(PLACES, [(x, y) for y in (LOW, MIDDLE, HIGH) for x in (LOW, MIDDLE, HIGH)], strict=True)
)
"""Center of each place, before jitter."""
_QUADRANTS: tuple[Point, ...] = ((LOW, LOW), (HIGH, LOW), (LOW, HIGH), (HIGH, HIGH))
_PAIRS: tuple[tuple[Point, Point], ...] = (
    ((LOW, MIDDLE), (HIGH, MIDDLE)),
    ((LOW, MIDDLE), (HIGH, MIDDLE)),
    ((MIDDLE, LOW), (MIDDLE, HIGH)),
    ((MIDDLE, LOW), (MIDDLE, HIGH)),
    (_QUADRANTS[0], _QUADRANTS[3]),
    (_QUADRANTS[1], _QUADRANTS[2]),
)
_ROW: tuple[Point, ...] = ((0.2, MIDDLE), (MIDDLE, MIDDLE), (0.8, MIDDLE))


def sample_scene(seed: int, index: int, split: str = "train", world: World = FULL) -> Scene:
    """Returns scene `index` of an endless data set; depends only on the arguments.

    Args:
        seed: the data set's seed.
        index: number of the scene, >= 0.
        split: "train" and "val" (other scenes, same distribution) never show a held-out
            composition; "heldout" always shows at least one.
        world: the things, colors and numbers of objects to draw from.

    Raises:
        UsageError: for an unknown split.
    """
    check_split(split)
    rng = numpy_rng(seed, f"scenes/{split}", index)
    # Drawn before any rejection, which would otherwise make scenes with many objects rare.
    kind, count = _sample_kind(rng, world)
    return _draw_of_split(rng, kind, count, split, world)


def sample_pair(seed: int, index: int, split: str = "train", world: World = FULL) -> Scene:
    """Returns scene `index` of two different things; arguments and errors as in `sample_scene`."""
    check_split(split)
    rng = numpy_rng(seed, f"scenes/pairs/{split}", index)
    return _draw_of_split(rng, "distinct", 2, split, world)


def sample_groups(seed: int, index: int, split: str = "train", world: World = FULL) -> Scene:
    """Returns scene `index` of three or four things, or of two, one of them more than once.

    Arguments and errors as in `sample_scene`; UsageError, too, for a world without three objects.
    """
    check_split(split)
    check_groups(world)
    rng = numpy_rng(seed, f"scenes/groups/{split}", index)
    kind = pick(rng, ("distinct", "two groups"))
    return _draw_of_split(rng, kind, int(rng.integers(3, world.max_objects + 1)), split, world)


def check_groups(world: World) -> None:
    """Raises UsageError if a world is too small for `sample_groups`."""
    if world.max_objects < 3:
        raise UsageError("groups need scenes of three objects; world.max_objects is smaller")


def _draw_of_split(
    rng: np.random.Generator, kind: str, count: int, split: str, world: World
) -> Scene:
    while True:
        scene = _draw(rng, kind, count, world)
        if is_heldout(scene) == (split == "heldout"):
            return scene


def draw_scene(rng: np.random.Generator, world: World = FULL) -> Scene:
    """Returns a scene that may show held-out compositions."""
    return _draw(rng, *_sample_kind(rng, world), world)


def check_split(split: str) -> None:
    """Raises UsageError if a name is not in SPLITS."""
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)


def _draw(rng: np.random.Generator, kind: str, count: int, world: World) -> Scene:
    looks = _sample_looks(rng, kind, count, world)
    return Scene(background=pick(rng, BACKGROUNDS), objects=arrange(rng, looks))


def _sample_kind(rng: np.random.Generator, world: World) -> tuple[str, int]:
    """Returns the kind of a scene (which of its objects look the same), and their number."""
    while True:
        kind, count = _sample_any_kind(rng)
        if count <= world.max_objects:
            return kind, count


def _sample_any_kind(rng: np.random.Generator) -> tuple[str, int]:
    roll = rng.random()
    if roll < 0.66:
        return "distinct", int(rng.choice([1, 2, 3, 4], p=[0.36, 0.34, 0.15, 0.15]))
    if roll < 0.84:
        return "copies", int(rng.integers(2, 5))
    if roll < 0.94:
        return "two groups", int(rng.integers(3, 5))
    return "two colors", int(rng.integers(2, 5))


def _sample_looks(
    rng: np.random.Generator, kind: str, count: int, world: World
) -> list[tuple[str, str]]:
    """Returns (thing, color) of every object."""
    names, hues = world.things, world.colors
    things = [names[int(k)] for k in rng.choice(len(names), size=count, replace=False)]
    colors = [hues[int(k)] for k in rng.integers(len(hues), size=count)]
    if kind == "copies":
        return [(things[0], colors[0])] * count
    if kind == "two groups":
        first = int(rng.integers(1, count))
        return [(things[0], colors[0])] * first + [(things[1], colors[1])] * (count - first)
    if kind == "two colors":
        first = int(rng.integers(1, count))
        colors = [hues[int(k)] for k in rng.choice(len(hues), size=2, replace=False)]
        return [(things[0], colors[0])] * first + [(things[0], colors[1])] * (count - first)
    return list(zip(things, colors, strict=True))


def arrange(rng: np.random.Generator, looks: list[tuple[str, str]]) -> tuple[Placed, ...]:
    """Returns one to four objects, given as (thing, color), at sampled places and sizes.

    They do not touch, and they are in reading order.
    """
    points, cells = _sample_points(rng, len(looks))
    order = rng.permutation(len(looks))
    objects = []
    for (x, y), room, k in zip(points, cells, order, strict=True):
        size = pick(rng, tuple(SIZES.values())) + rng.uniform(-SIZE_JITTER, SIZE_JITTER)
        objects.append((looks[int(k)], min(size, room), x, y))
    # A tight layout loses its jitter but is not rejected, so all positions stay equally likely.
    for shrink in (1.0, 0.5, 0.0):
        placed = tuple(
            Placed(
                thing=look[0],
                color=look[1],
                x=_rounded(x + shrink * rng.uniform(-JITTER, JITTER), size),
                y=_rounded(y + shrink * rng.uniform(-JITTER, JITTER), size),
                size=round(size, 4),
            )
            for look, size, x, y in objects
        )
        if fits(placed):
            return placed
    raise AssertionError(f"a layout without jitter does not fit: {objects}")


def _rounded(center: float, size: float) -> float:
    reach = 0.5 - MARGIN - size / 2 - 1e-4
    return round(0.5 + float(np.clip(center - 0.5, -reach, reach)), 4)


def _sample_points(rng: np.random.Generator, count: int) -> tuple[list[Point], list[float]]:
    """Returns centers in reading order, and the maximum size at each center."""
    if count == 1:
        if rng.random() < 0.4:
            return [(MIDDLE, MIDDLE)], [1.0]
        return [PLACE_CENTERS[pick(rng, PLACES)]], [1.0]
    if count == 3 and rng.random() < 0.4:
        return list(_ROW), [0.3 - GAP] * 3
    if count == 2:
        return list(pick(rng, _PAIRS)), [HIGH - LOW - GAP] * 2
    missing = int(rng.integers(4)) if count == 3 else -1
    points = [point for k, point in enumerate(_QUADRANTS) if k != missing]
    return points, [HIGH - LOW - GAP] * count
