"""Other names of things and colors, as people say them. All of them occur in training."""

from collections.abc import Mapping

import numpy as np

from blip3o.data.scenes.things import plural
from blip3o.data.scenes.words import pick

THING_NAMES: Mapping[str, tuple[str, ...]] = {
    "cat": ("kitten", "kitty"),
    "dog": ("puppy", "pup", "doggy"),
    "rabbit": ("bunny", "hare"),
    "turtle": ("tortoise",),
    "duck": ("duckling",),
    "car": ("automobile",),
    "bus": ("coach",),
    "airplane": ("plane", "aeroplane", "jet"),
    "rocket": ("spaceship", "rocket ship"),
    "boat": ("ship", "sailboat"),
    "tree": ("pine tree", "fir"),
    "cactus": ("cactus plant",),
    "mushroom": ("toadstool",),
    "umbrella": ("parasol", "brolly"),
    "house": ("home", "cottage"),
    "hat": ("top hat",),
    "shoe": ("sneaker",),
    "dress": ("gown",),
    "cup": ("mug", "teacup"),
    "clock": ("alarm clock",),
    "chair": ("seat",),
    "robot": ("android",),
    "moon": ("crescent",),
    "circle": ("disc", "disk"),
    "diamond": ("rhombus",),
    "cross": ("plus sign",),
    "ring": ("hoop",),
    "elephant": ("jumbo",),
    "ghost": ("spook",),
}
"""Other names of each thing; a thing without an entry has one name."""
COLOR_NAMES: Mapping[str, tuple[str, ...]] = {
    "red": ("scarlet", "crimson", "bright red"),
    "orange": ("tangerine", "bright orange"),
    "yellow": ("golden", "bright yellow"),
    "green": ("emerald", "grass green"),
    "blue": ("navy", "royal blue"),
    "purple": ("violet", "deep purple"),
    "pink": ("rose", "hot pink"),
    "black": ("jet black", "pitch black"),
}
"""Other names of each color."""
_SYNONYM_SHARE = 0.25


def named_thing(thing: str, rng: np.random.Generator, count: int = 1) -> str:
    """Returns a name of a thing, mostly its own, in the plural if there are several."""
    others = THING_NAMES.get(thing, ())
    name = pick(rng, others) if others and rng.random() < _SYNONYM_SHARE else thing
    return name if count == 1 else plural(name)


def named_color(color: str, rng: np.random.Generator) -> str:
    """Returns a name of a color, mostly its own."""
    return pick(rng, COLOR_NAMES[color]) if rng.random() < _SYNONYM_SHARE else color
