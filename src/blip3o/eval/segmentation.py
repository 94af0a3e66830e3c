"""Separates the objects of a scene from the background and returns a window around each.

The image is compared only with the known backgrounds; the content of the scene is not used.

Axis letters: H and W are rows and columns of a window.
"""

import dataclasses
import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blip3o.data.scenes.things import BACKGROUNDS, background_image

IMAGE_PX = 96
"""Every image is resized to this side, so thresholds in pixels have a fixed meaning."""

_CONTRAST = 0.14  # least difference between an object and the background, in [0, 1]
_STRONG_CONTRAST = 0.3  # the same inside a region, where blur may have joined two objects
_LEAST_AREA = 12  # pixels; smaller regions are ignored
_RIM = 2  # width of the image's rim, in steps of three pixels
_BORDER = 4  # pixels of background around an object that belong to its window

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """A part of the image around one region.

    Args:
        corner: column and row of its upper left pixel in the image.
        pixels: [3 H W], the image.
        background: [3 H W], the background behind it.
        distance: [H W], distance of each pixel from the background.
        weight: [H W], 0 at and next to pixels of other regions, else 1.
        mask: [H W], whether a pixel belongs to the region.
    """

    corner: tuple[int, int]
    pixels: Floats
    background: Floats
    distance: Floats
    weight: Floats
    mask: Bools


def planes(image: Image.Image) -> Floats:
    """Returns an RGB image as [3 H W] in [0, 1]."""
    return np.ascontiguousarray(np.moveaxis(np.asarray(image, dtype=np.float32) / 255, -1, 0))


def windows(image: Floats) -> list[Window]:
    """Returns a window around each region that differs from the background; image is [3 96 96]."""
    background, distance = _fit_background(image)
    whole = Window(
        corner=(0, 0),
        pixels=image,
        background=background,
        distance=distance,
        weight=np.ones_like(distance),
        mask=np.ones(distance.shape, dtype=bool),
    )
    return _cut(whole, _CONTRAST)


def parts(window: Window) -> list[Window]:
    """Returns windows around the parts of a region that only faint pixels connect."""
    return _cut(window, _STRONG_CONTRAST)


def _cut(window: Window, contrast: float) -> list[Window]:
    regions = _joined(_regions((window.distance > contrast) & window.mask))
    found = []
    for number in 1 + np.flatnonzero(np.bincount(regions.ravel())[1:] >= _LEAST_AREA):
        mask = regions == number
        left, top, right, bottom = box(mask)
        left, top = max(left - _BORDER, 0), max(top - _BORDER, 0)
        cut = (slice(top, bottom + _BORDER), slice(left, right + _BORDER))
        others = (regions > 0)[cut] & ~mask[cut]
        found.append(
            Window(
                corner=(window.corner[0] + left, window.corner[1] + top),
                pixels=window.pixels[:, *cut],
                background=window.background[:, *cut],
                distance=window.distance[cut],
                weight=window.weight[cut] * ~_grown(others),
                mask=mask[cut],
            )
        )
    return found


@functools.cache
def _backgrounds() -> Floats:
    """Returns all backgrounds, [10 3 96 96] in [0, 1]."""
    images = [background_image(name, 3 * IMAGE_PX).reduce(3) for name in BACKGROUNDS]
    return np.stack([planes(image) for image in images])


@functools.cache
def _envelopes() -> tuple[Floats, Floats]:
    """Returns the minimum and maximum of the 3 x 3 pixels around each pixel of all backgrounds.

    With them, a stripe that is drawn one pixel off still counts as background.
    """
    padded = np.pad(_backgrounds(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    around = np.stack(
        [padded[..., y : y + IMAGE_PX, x : x + IMAGE_PX] for y in range(3) for x in range(3)]
    )
    return around.min(axis=0), around.max(axis=0)


def _fit_background(image: Floats) -> tuple[Floats, Floats]:
    """Returns the background of an image [3 96 96] and each pixel's distance from it [96 96].

    Each known background is shifted to the median color at the image's rim, where scenes have no
    objects, and the nearest one is chosen. The shift allows for the errors of a decoder and for
    plain backgrounds of any light color.
    """
    known = _backgrounds()
    rest = image[:, 1::3, 1::3] - known[..., 1::3, 1::3]
    rim = np.ones(rest.shape[-2:], dtype=bool)
    rim[_RIM:-_RIM, _RIM:-_RIM] = False
    shift = np.median(rest[..., rim], axis=-1)[..., None, None]
    error = np.minimum(np.abs(rest - shift), 0.15).mean(axis=(1, 2, 3))
    best = int(error.argmin())
    low, high = _envelopes()
    over = np.maximum(image - high[best] - shift[best], low[best] + shift[best] - image)
    return known[best] + shift[best], over.max(axis=0)


def _regions(mask: Bools) -> NDArray[np.intp]:
    """Returns the number of each pixel's region, counted from 1; 0 outside the mask.

    Pixels that touch at a side or a corner belong to the same region. Runs of a row are joined with
    runs of the row above, so the loop is over runs, not pixels.
    """
    height, width = mask.shape
    steps = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    runs = list(zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True))
    parent = list(range(len(runs)))

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    above = 0
    for k, (row, start, end) in enumerate(runs):
        while runs[above][0] < row - 1 or (runs[above][0] == row - 1 and runs[above][2] < start):
            above += 1
        other = above
        while runs[other][0] == row - 1 and runs[other][1] <= end:
            parent[root(other)] = root(k)
            other += 1
    numbers: dict[int, int] = {}
    regions = np.zeros((height, width), dtype=np.intp)
    for k, (row, start, end) in enumerate(runs):
        regions[row, start:end] = numbers.setdefault(root(k), len(numbers) + 1)
    return regions


def box(mask: Bools) -> tuple[int, int, int, int]:
    """Returns the box (left, top, right, bottom) of a mask; right and bottom are exclusive."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _joined(regions: NDArray[np.intp]) -> NDArray[np.intp]:
    """Merges each region into the one whose box contains it; pale spots can split an object."""
    numbers = np.argsort(-np.bincount(regions.ravel())[1:]) + 1
    boxes = {number: box(regions == number) for number in numbers.tolist()}
    for number, (left, top, right, bottom) in boxes.items():
        part = regions[top:bottom, left:right]
        for other in np.unique(part[(part != number) & (part > 0)]).tolist():
            x0, y0, x1, y1 = boxes[other]
            if left <= x0 and top <= y0 and x1 <= right and y1 <= bottom:
                part[part == other] = number
    return regions


def _grown(mask: Bools) -> Bools:
    """Returns a mask extended by one pixel in all directions."""
    padded = np.pad(mask, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]
