"""The contents of scenes: 48 things in 8 colors, with their words and sprites."""

import functools
import json
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

THINGS: tuple[str, ...] = (
    *("cat", "dog", "rabbit", "elephant", "turtle", "snail", "butterfly", "fish", "duck"),
    *("penguin", "crab", "car", "bus", "airplane", "rocket", "boat", "tree", "cactus"),
    *("mushroom", "apple", "banana", "pear", "pineapple", "pizza", "guitar", "bell", "key"),
    *("umbrella", "house", "hat", "shoe", "dress", "cup", "clock", "crown", "anchor", "chair"),
    *("ghost", "robot", "moon", "circle", "square", "triangle", "star", "heart", "diamond"),
    *("cross", "ring"),
)
"""Names of all things; the last eight are geometric shapes."""

COLORS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")

# Dark outline, body and highlight of each color. Highlights are saturated, because a pale red
# looks pink and a dark yellow looks green.
RAMPS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]] = {
    "red": ((88, 0, 8), (218, 20, 28), (255, 92, 84)),
    "orange": ((128, 50, 0), (252, 124, 0), (255, 176, 84)),
    "yellow": ((138, 104, 0), (252, 214, 0), (255, 243, 128)),
    "green": ((0, 62, 18), (24, 156, 52), (128, 220, 120)),
    "blue": ((4, 22, 104), (28, 88, 228), (128, 184, 255)),
    "purple": ((50, 4, 92), (128, 44, 192), (196, 136, 240)),
    "pink": ((150, 20, 96), (255, 104, 180), (255, 186, 222)),
    "black": ((0, 0, 0), (46, 46, 50), (128, 128, 134)),
}
BODY_TONE = 0.6
"""Tone with the body color of a ramp; about the mean tone of the sheet's cells."""

IRREGULAR_PLURALS = {"fish": "fish", "cactus": "cactuses"}
NUMBER_WORDS = ("zero", "one", "two", "three", "four")


def plural(thing: str) -> str:
    """Returns the plural: "cat" -> "cats", "box" -> "boxes"."""
    if thing in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[thing]
    if thing.endswith(("s", "x", "ch", "sh")):
        return thing + "es"
    if thing.endswith("y") and thing[-2] not in "aeiou":
        return thing[:-1] + "ies"
    return thing + "s"


def with_article(words: str) -> str:
    """Returns the words with "a" or "an": "apple" -> "an apple"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@functools.cache
def _sheet() -> tuple[dict[str, Any], Image.Image]:
    folder = resources.files("blip3o.data.scenes")
    layout = json.loads((folder / "sprites.json").read_text(encoding="utf-8"))
    with (folder / "sprites.png").open("rb") as file:
        image = Image.open(file)
        image.load()
    return layout, image


@functools.cache
def sprite(thing: str) -> NDArray[np.uint8]:
    """Returns a thing's tone (0 dark, 255 light) and alpha, uint8 of shape [H W 2], trimmed."""
    layout, image = _sheet()
    number = [*layout["emoji"], *layout["shapes"]].index(thing)
    cell = layout["cell"]
    left, top = number % layout["columns"] * cell, number // layout["columns"] * cell
    cut = image.crop((left, top, left + cell, top + cell))
    return np.asarray(cut.crop(cut.getchannel("A").getbbox()))


@functools.cache
def colored_sprite(thing: str, color: str) -> Image.Image:
    """Returns a thing in a color as an RGBA image, trimmed, in the sheet's resolution."""
    pixels = sprite(thing)
    stops = np.array([0.0, BODY_TONE * 255, 255.0])
    ramp = np.array(RAMPS[color], dtype=np.float64)
    table = np.stack([np.interp(np.arange(256), stops, ramp[:, c]) for c in range(3)], axis=-1)
    rgb = table.round().astype(np.uint8)[pixels[..., 0]]
    return Image.fromarray(np.concatenate([rgb, pixels[..., 1:]], axis=-1), mode="RGBA")
