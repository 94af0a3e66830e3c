"""Ten light backgrounds that contrast with every color."""

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
