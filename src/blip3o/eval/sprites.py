"""Draws all sprites in all colors at any place and scale, for comparison with an image.

A color's ramp has two linear parts, so a sprite in any color is a linear combination of three
planes that do not depend on the color. Thus 48 stored sprites represent all 384.

Axis letters: K sprites, H and W rows and columns of a window of the image.
"""

import dataclasses
import functools

import numpy as np
from numpy.typing import NDArray

from blip3o.data.scenes.things import BODY_TONE, COLORS, RAMPS, THINGS, sprite

Floats = NDArray[np.floating]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpriteSet:
    """All sprites at one resolution.

    Args:
        basis: [48 3 S S], alpha, and alpha times the shares of the ramp's lower and upper half.
            The sprite in any color is a linear combination of the three.
        center: [48 2], centroid (x, y) of the silhouette relative to the square's center, as a
            fraction of the side.
        radius: [48], root mean square distance of the silhouette from its centroid, as a fraction
            of the side.
    """

    basis: Floats
    center: Floats
    radius: Floats


@functools.cache
def sprite_set(side: int) -> SpriteSet:
    """Returns all sprites with a longer side of `side` pixels; callers must not change them."""
    basis = np.zeros((len(THINGS), 3, side, side), dtype=np.float32)
    for row, thing in zip(basis, THINGS, strict=True):
        tone, alpha = np.moveaxis(sprite(thing).astype(np.float32) / 255, -1, 0)
        lower = np.minimum(tone / BODY_TONE, 1)
        upper = np.maximum(tone - BODY_TONE, 0) / (1 - BODY_TONE)
        planes = np.stack([alpha, alpha * lower, alpha * upper])
        height, width = alpha.shape
        scale = side / max(height, width)
        down, across = (
            _shares(np.array([(side - length * scale) / 2]), np.array([scale]), length, side)[0]
            for length in (height, width)
        )
        row[:] = down @ planes @ across.T
    inside = basis[:, 0].astype(np.float64)
    place = (np.arange(side) + 0.5) / side - 0.5
    area = inside.sum(axis=(1, 2))
    x = (inside.sum(axis=1) @ place) / area
    y = (inside.sum(axis=2) @ place) / area
    spread = (inside.sum(axis=1) @ place**2 + inside.sum(axis=2) @ place**2) / area - x**2 - y**2
    center = np.stack([x, y], axis=-1).astype(np.float32)
    return SpriteSet(basis=basis, center=center, radius=np.sqrt(spread).astype(np.float32))


def _shares(start: Floats, scale: Floats, source: int, target: int) -> Floats:
    """Returns the share of each target cell that each source cell covers, [K target source].

    Args:
        start: [K], start of the first source cell, in target cells.
        scale: [K], width of a source cell, in target cells.
        source: number of source cells.
        target: number of target cells.
    """
    edges = (np.arange(target + 1, dtype=np.float32) - start[:, None]) / scale[:, None]
    cells = np.arange(source, dtype=np.float32)
    low = np.maximum(edges[:, :-1, None], cells)
    high = np.minimum(edges[:, 1:, None], cells + 1)
    return np.maximum(high - low, 0) * scale[:, None, None]


def draw(
    stored: SpriteSet, which: NDArray[np.intp], pose: Floats, shape: tuple[int, int]
) -> Floats:
    """Returns the basis of some sprites drawn in a window, [K 3 H W].

    Args:
        stored: the stored sprites.
        which: [K], indices of the sprites.
        pose: [K 3], center x, center y and longer side, in pixels of the window.
        shape: height and width of the window.
    """
    side = stored.basis.shape[-1]
    corner = pose[:, :2] - pose[:, 2:] / 2
    across = _shares(corner[:, 0], pose[:, 2] / side, side, shape[1])
    down = _shares(corner[:, 1], pose[:, 2] / side, side, shape[0])
    return np.matmul(down[:, None] @ stored.basis[which], across[:, None].transpose(0, 1, 3, 2))


def paint(basis: Floats, ramps: Floats, background: Floats) -> Floats:
    """Returns the RGB difference [K 3 H W] between drawn sprites in a color and the background.

    Args:
        basis: [K 3 H W], from `draw`.
        ramps: [3 3], one color of `ramps_of_colors`.
        background: [3 H W], RGB.
    """
    painted = ramps.T @ basis.reshape(*basis.shape[:2], -1)
    return painted.reshape(basis.shape) - basis[:, :1] * background


@functools.cache
def ramps_of_colors() -> Floats:
    """Returns the dark end and the two increments of each color's ramp, [8 3 3], RGB in [0, 1]."""
    stops = np.array([RAMPS[color] for color in COLORS], dtype=np.float32) / 255
    return np.stack([stops[:, 0], stops[:, 1] - stops[:, 0], stops[:, 2] - stops[:, 1]], axis=1)


def color_distances(pixels: Floats) -> Floats:
    """Returns the distance [N 8] of RGB pixels [N 3] from every color's ramp."""
    ramps = ramps_of_colors()
    start = ramps[:, 0]
    best = np.full((len(pixels), len(COLORS)), np.inf, dtype=np.float32)
    for rise in (ramps[:, 1], ramps[:, 2]):
        offset = pixels[:, None] - start
        share = np.clip((offset * rise).sum(-1) / (rise**2).sum(-1), 0, 1)
        best = np.minimum(best, np.linalg.norm(offset - share[..., None] * rise, axis=-1))
        start = start + rise
    return best
