"""Other names of things, colors, sizes, places and backgrounds, as people say them.

All of them occur in training.
"""

from collections.abc import Mapping

import numpy as np

from blip3o.data.scenes.things import plural
from blip3o.data.scenes.words import pick

THING_NAMES: Mapping[str, tuple[str, ...]] = {
    "cat": ("kitten", "kitty", "kitty cat"),
    "dog": ("puppy", "pup", "doggy", "hound"),
    "rabbit": ("bunny", "hare", "bunny rabbit"),
    "turtle": ("tortoise",),
    "duck": ("duckling", "ducky"),
    "car": ("automobile", "auto"),
    "bus": ("coach", "autobus"),
    "airplane": ("plane", "aeroplane", "jet", "jet plane"),
    "rocket": ("spaceship", "rocket ship", "space rocket"),
    "boat": ("ship", "sailboat", "sailing boat", "yacht"),
    "tree": ("pine tree", "fir", "fir tree", "evergreen"),
    "cactus": ("cactus plant",),
    "mushroom": ("toadstool",),
    "pizza": ("pizza slice",),
    "umbrella": ("parasol", "brolly"),
    "house": ("home", "cottage"),
    "hat": ("top hat",),
    "shoe": ("sneaker",),
    "dress": ("gown", "frock"),
    "cup": ("mug", "teacup"),
    "clock": ("alarm clock",),
    "chair": ("seat",),
    "robot": ("android", "bot", "droid"),
    "moon": ("crescent", "crescent moon"),
    "circle": ("disc", "disk"),
    "heart": ("love heart",),
    "diamond": ("rhombus",),
    "cross": ("plus sign",),
    "ring": ("hoop",),
    "ghost": ("spook", "phantom"),
}
"""Other names of each thing; a thing without an entry has one name."""
PLURALS: Mapping[str, str] = {"cactus": "cacti", "fish": "fishes", "pizza": "pizza slices"}
"""Other plurals of things."""
COLOR_NAMES: Mapping[str, tuple[str, ...]] = {
    "red": ("scarlet", "crimson", "bright red", "ruby red"),
    "orange": ("tangerine", "bright orange"),
    "yellow": ("golden", "bright yellow", "lemon yellow"),
    "green": ("emerald", "grass green", "emerald green"),
    "blue": ("navy", "royal blue", "bright blue", "cobalt blue"),
    "purple": ("violet", "deep purple"),
    "pink": ("rose", "hot pink", "bright pink"),
    "black": ("jet black", "pitch black", "ebony"),
}
"""Other names of each color. A pale color is none of them: some backgrounds are pale."""
SIZE_NAMES: Mapping[str, tuple[str, ...]] = {
    "small": ("little", "tiny", "small-sized"),
    "medium": ("medium-sized", "medium-size", "mid-sized"),
    "large": ("big", "huge", "large-sized"),
}
"""Other words for each size."""
BACKGROUND_NAMES: Mapping[str, tuple[str, ...]] = {
    "white": ("plain white", "pure white"),
    "light gray": ("light grey", "pale gray"),
    "light blue": ("pale blue", "baby blue"),
    "light green": ("pale green", "mint green"),
    "cream": ("beige", "cream-colored"),
    "lavender": ("light purple", "pale purple", "lilac"),
    "striped": ("stripy",),
    "dotted": ("polka dot", "spotted"),
}
"""Other names of backgrounds, as adjectives."""
_SYNONYM_SHARE = 0.25


def named_thing(thing: str, rng: np.random.Generator, count: int = 1) -> str:
    """Returns a name of a thing, mostly its own, in the plural if there are several."""
    if count > 1 and thing in PLURALS and rng.random() < _SYNONYM_SHARE:
        return PLURALS[thing]
    name = _named(thing, THING_NAMES, rng)
    return name if count == 1 else plural(name)


def named_color(color: str, rng: np.random.Generator) -> str:
    """Returns a name of a color, mostly its own."""
    return _named(color, COLOR_NAMES, rng)


def named_size(size: str, rng: np.random.Generator) -> str:
    """Returns a word for "small", "medium" or "large"."""
    return pick(rng, (size, *SIZE_NAMES[size]))


def named_place(corner: str, rng: np.random.Generator) -> str:
    """Returns a name of a corner such as "top left": also "top-left", "upper left"."""
    row, column = corner.split()
    other = {"top": "upper", "bottom": "lower"}[row]
    return pick(rng, (corner, corner, f"{row}-{column}", f"{other} {column}"))


def named_background(name: str, rng: np.random.Generator) -> tuple[str, str]:
    """Returns a background's name before a noun ("sky") and after "is" ("the sky")."""
    if name in ("sky", "sunset"):
        return name, f"a {name}"
    chosen = _named(name, BACKGROUND_NAMES, rng)
    return chosen, chosen.replace("polka dot", "polka-dotted")


def _named(name: str, table: Mapping[str, tuple[str, ...]], rng: np.random.Generator) -> str:
    others = table.get(name, ())
    return pick(rng, others) if others and rng.random() < _SYNONYM_SHARE else name
