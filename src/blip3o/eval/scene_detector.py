"""Finds and names the objects of a scene; the image is the only input.

Every sprite is compared with each object: it is drawn at the object's place and scale and in its
color, aligned to a fraction of a pixel, and correlated with the image. An object that correlates
with no sprite is `UNKNOWN`: naming the nearest thing in every case would reward blobs.

Axis letters: K sprites under comparison, H and W rows and columns of a window of the image.
"""

from itertools import takewhile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blip3o.data.scenes.things import COLORS, THINGS
from blip3o.eval.scene_rules import SceneDetection
from blip3o.eval.segmentation import IMAGE_PX, Bools, Floats, Window, box, parts, planes, windows
from blip3o.eval.sprites import SpriteSet, color_distances, draw, paint, ramps_of_colors, sprite_set

VERSION = 1
"""Part of the name of the judge: raise it with any change of the findings."""

UNKNOWN = "unknown"
"""Thing or color of an object that matches none of the known ones."""

_STORED = 64  # side of a stored sprite
_COARSE = 32  # side of a stored sprite for the first comparison, at half the resolution
_FAR = 0.3  # color distances are clipped to this value
_CANDIDATES = 3  # sprites that are aligned, of 48
_STEPS = 2  # iterations of the alignment
_LEAST_SIZE = 12  # pixels; smaller regions are never named
_MIN_SCORE = 0.75  # least correlation with a sprite at which an object gets a name
_MIN_LEAD = 0.05  # least difference between the correlations of the best and the second sprite
_MAX_COLOR_ERROR = 0.15
"""Largest distance between the mean colors of an object and its sprite, RGB in [0, 1], at which the
object gets a color. The two nearest colors are 0.35 apart."""


def detect(image: Image.Image) -> tuple[SceneDetection, ...]:
    """Returns the objects of an image; those that cannot be named are `UNKNOWN`.

    Args:
        image: a square image, preferably of at least 96 x 96 pixels.

    Raises:
        ValueError: if the image is not square.
    """
    if image.width != image.height:
        raise ValueError(f"a scene is square, but the image is {image.width}x{image.height}")
    image = image.convert("RGB")
    if image.width != IMAGE_PX:
        shrinks = image.width > IMAGE_PX
        filter_ = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
        image = image.resize((IMAGE_PX, IMAGE_PX), filter_)
    return tuple(one for window in windows(planes(image)) for one in _named(window))


def _named(window: Window) -> list[SceneDetection]:
    """Returns the object of a window, or several objects that blur has joined."""
    whole = _compared(window)
    if whole.thing != UNKNOWN:
        return [whole]
    cut = parts(window)
    pieces = list(takewhile(lambda piece: piece.thing != UNKNOWN, map(_compared, cut)))
    return pieces if 1 < len(pieces) == len(cut) else [whole]


def _compared(window: Window) -> SceneDetection:
    left, top, right, bottom = box(window.mask)
    if max(right - left, bottom - top) < _LEAST_SIZE:
        center = ((left + right) / 2, (top + bottom) / 2)
        return _detection(window, (*center, max(right - left, bottom - top)))
    distances = color_distances(window.pixels[:, window.mask].T[::2])
    number = int(np.minimum(distances, _FAR).mean(axis=0).argmin())
    ramps = ramps_of_colors()[number]
    poses = _first_poses(sprite_set(_STORED), window.mask)
    which = _likeliest(poses, ramps, window)
    poses, scores = _aligned(which, poses[which], ramps, window)
    if scores.max() < _MIN_SCORE:  # a mask without pale parts gives poor first poses
        poses, scores = _aligned(which, poses, ramps, window)
    second, first = np.argsort(scores)[-2:]
    pose, score = poses[first], float(scores[first])
    known = score >= max(_MIN_SCORE, scores[second] + _MIN_LEAD)
    colored = _color_error(which[first], pose, ramps, window) <= _MAX_COLOR_ERROR
    return _detection(
        window,
        tuple(pose.tolist()),
        thing=THINGS[which[first]] if known and pose[2] >= _LEAST_SIZE else UNKNOWN,
        color=COLORS[number] if colored else UNKNOWN,
        score=min(max(score, 0.0), 1.0),
    )


def _detection(
    window: Window,
    pose: tuple[float, float, float],
    *,
    thing: str = UNKNOWN,
    color: str = UNKNOWN,
    score: float = 0.0,
) -> SceneDetection:
    return SceneDetection(
        thing=thing,
        color=color,
        x=(window.corner[0] + pose[0]) / IMAGE_PX,
        y=(window.corner[1] + pose[1]) / IMAGE_PX,
        size=pose[2] / IMAGE_PX,
        score=score,
    )


def _first_poses(stored: SpriteSet, mask: Bools) -> Floats:
    """Returns poses [48 3] at which every sprite has the centroid and spread of a region."""
    rows, columns = np.nonzero(mask)
    size = np.maximum(np.sqrt(rows.var() + columns.var()) / stored.radius, _LEAST_SIZE / 2)
    center = np.array([columns.mean() + 0.5, rows.mean() + 0.5]) - size[:, None] * stored.center
    return np.concatenate([center, size[:, None]], axis=1).astype(np.float32)


def _likeliest(poses: Floats, ramps: Floats, window: Window) -> NDArray[np.intp]:
    """Returns the sprites that correlate best with a region at half the resolution."""
    background = _halved(window.background)
    shape = (background.shape[1], background.shape[2])
    drawn = paint(
        draw(sprite_set(_COARSE), np.arange(len(poses)), poses / 2, shape), ramps, background
    )
    seen = _halved(window.pixels) - background
    return np.argsort(-_agreement(drawn, seen, _halved(window.weight)))[:_CANDIDATES]


def _aligned(
    which: NDArray[np.intp], pose: Floats, ramps: Floats, window: Window
) -> tuple[Floats, Floats]:
    """Moves and scales sprites to fit a region; returns poses [K 3] and scores [K].

    Takes Gauss-Newton steps on the squared difference. The derivatives with respect to place and
    size follow from the spatial gradient of the drawn sprite.
    """
    seen = _soften(window.pixels - window.background)
    height, width = window.mask.shape
    column = np.arange(width, dtype=np.float32) + 0.5
    row = np.arange(height, dtype=np.float32)[:, None] + 0.5

    def drawn_at(pose: Floats) -> Floats:
        basis = draw(sprite_set(_STORED), which, pose, (height, width))
        return _soften(paint(basis, ramps, window.background))

    for _ in range(_STEPS):
        drawn = drawn_at(pose)
        down, across = np.gradient(drawn, axis=(2, 3))
        x, y, size = pose.T[:, :, None, None, None]
        outward = ((column - x) * across + (row - y) * down) / size
        slopes = -np.stack([across, down, outward], axis=1) * window.weight
        slopes = slopes.reshape(len(pose), 3, -1)
        rest = ((seen - drawn) * window.weight).reshape(len(pose), -1, 1)
        normal = slopes @ slopes.transpose(0, 2, 1) + 1e-3 * np.eye(3, dtype=np.float32)
        step = np.linalg.solve(normal, slopes @ rest)[..., 0]
        pose = pose + np.clip(step, -1.5, 1.5)
    return pose, _edge_agreement(drawn_at(pose), seen, window.weight)


def _color_error(which: np.intp, pose: Floats, ramps: Floats, window: Window) -> float:
    """Returns the distance between the mean colors of a region and of a sprite drawn over it."""
    basis = draw(sprite_set(_STORED), np.array([which]), pose[None], window.mask.shape)
    rest = window.pixels - window.background - paint(basis, ramps, window.background)[0]
    inside = basis[0, 0] * window.weight
    mean = (rest * inside).sum(axis=(1, 2)) / max(float(inside.sum()), 1e-6)
    return float(np.linalg.norm(mean))


def _soften(planes: Floats) -> Floats:
    """Returns planes [... H W] after a small blur that hides noise and shifts of half a pixel."""
    pad = [(0, 0)] * (planes.ndim - 2) + [(1, 1), (1, 1)]
    padded = np.pad(planes, pad, mode="edge")
    rows = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 16


def _halved(planes: Floats) -> Floats:
    height, width = (length // 2 * 2 for length in planes.shape[-2:])
    rows = planes[..., 0:height:2, :width] + planes[..., 1:height:2, :width]
    return (rows[..., 0::2] + rows[..., 1::2]) / 4


def _agreement(drawn: Floats, seen: Floats, weight: Floats) -> Floats:
    """Returns the correlation [K] of drawn sprites [K 3 H W] with an observed region [3 H W].

    Neither mean nor scale is normalized: only equal images give 1, and the same image at half the
    contrast gives 0.8. The weight [H W] selects the pixels that count.
    """
    both = (drawn * (seen * weight)).sum(axis=(1, 2, 3))
    energy = (drawn**2 * weight).sum(axis=(1, 2, 3)) + (seen**2 * weight).sum()
    return 2 * both / np.maximum(energy, 1e-6)


def _edge_agreement(drawn: Floats, seen: Floats, weight: Floats) -> Floats:
    """Returns `_agreement` [K] of the differences between neighboring pixels.

    Only edges count, not flat areas, so a smeared or shapeless blob of the right color scores low.
    """
    both = energy = np.zeros(len(drawn), dtype=np.float32)
    for axis, share in ((-1, weight[:, 1:]), (-2, weight[1:])):
        of_drawn, of_seen = np.diff(drawn, axis=axis), np.diff(seen, axis=axis)
        both = both + (of_drawn * (of_seen * share)).sum(axis=(1, 2, 3))
        energy = energy + (of_drawn**2 * share).sum(axis=(1, 2, 3)) + (of_seen**2 * share).sum()
    return 2 * both / np.maximum(energy, 1e-6)
