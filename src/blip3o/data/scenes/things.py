"""The vocabulary of scenes: 48 things in 8 colors, and 10 backgrounds, with words and images."""

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

# Light colors that contrast with every color of a thing.
_PLAIN = {
    "white": (255, 255, 255),
    "light gray": (214, 216, 220),
    "light blue": (198, 226, 252),
    "light green": (206, 240, 202),
    "cream": (252, 240, 206),
    "lavender": (226, 214, 250),
}
_GRADIENT = {
    "sky": ((138, 196, 248), (244, 250, 255)),
    "sunset": ((255, 214, 176), (252, 216, 236)),
}
BACKGROUNDS: tuple[str, ...] = (*_PLAIN, *_GRADIENT, "striped", "dotted")
"""Names of all backgrounds, as used in captions: "on a <name> background"."""

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


@functools.lru_cache(maxsize=32)
def background_image(name: str, px: int) -> Image.Image:
    """Returns a background as an RGB image of px x px; callers must not change it."""
    y, x = np.mgrid[0:px, 0:px] / px
    if name in _PLAIN:
        return Image.new("RGB", (px, px), _PLAIN[name])
    if name in _GRADIENT:
        return _mix(*_GRADIENT[name], y)
    if name == "striped":
        return _mix((250, 246, 236), (206, 222, 232), _soft_step(np.sin(2 * np.pi * 6 * x)))
    if name == "dotted":
        distance = np.hypot((x * 6) % 1 - 0.5, (y * 6) % 1 - 0.5)
        return _mix((250, 250, 252), (196, 206, 220), _soft_step((0.22 - distance) * 8))
    raise ValueError(f"no background {name!r}; known: {', '.join(BACKGROUNDS)}")


def _soft_step(value: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(value * 2 + 0.5, 0, 1)


def _mix(
    first: tuple[int, int, int], second: tuple[int, int, int], share: NDArray[np.float64]
) -> Image.Image:
    pixels = np.array(first) + share[..., None] * (np.array(second) - np.array(first))
    return Image.fromarray(pixels.round().astype(np.uint8))
