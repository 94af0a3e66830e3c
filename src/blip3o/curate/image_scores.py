"""Scores of images that need no model: pure functions of PIL images.

Each score is in a table by its name, so a further one is a function and a line.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

_FRAME_PX, _CAST_PX, _EDIT_PX = 256, 128, 64
"""Longest sides to which images are reduced; boxes of pixels also average out compression."""
_SAME_LEVEL = 16
"""Most difference of a color, of 255, between the pixels of a frame."""
_PLAIN, _MIXED = 0.9, 0.5
"""Least share of the frame's color in a line of the frame, and most share inside its edge."""
_EDGE_LINES = 8
"""Lines over which compression and resampling blur an edge."""
_STRONG_CHROMA = 20.0
"""Chroma (CIELAB) of a pixel that counts half in the cast: strong colors belong to the things."""
_VISIBLE = 10.0
"""Least difference of colors (CIELAB) that counts as a visible change."""
_WHITE_D65 = np.array([0.95047, 1.0, 1.08883], dtype=np.float32)
_XYZ_OF_RGB = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ],
    dtype=np.float32,
)


def short_px(image: Image.Image) -> float:
    """Returns the shorter side in pixels, at least 1."""
    return float(min(image.size))


def aspect(image: Image.Image) -> float:
    """Returns the longer side by the shorter one, at least 1."""
    return max(image.size) / min(image.size)


def spread(image: Image.Image) -> float:
    """Returns the standard deviation of the luminance, from 0 (one brightness) to 127.5."""
    return float(np.asarray(image.convert("L"), dtype=np.float32).std())


def border(image: Image.Image) -> float:
    """Returns the share of the area in a frame or in bars of one color, from 0 to 1.

    Each side may have another color. A plain ground around a thing is no frame: a frame ends at a
    straight edge.

    Args:
        image: an RGB image. One of one color is all frame.
    """
    pixels = np.asarray(_reduced(image, _FRAME_PX), dtype=np.int16)
    area = pixels.shape[0] * pixels.shape[1]
    for _ in range(4):  # the top, then the other sides, each turned to the top
        pixels = np.rot90(pixels[_frame_lines(pixels) :])
        if not pixels.size:
            return 1.0
    return 1 - pixels.shape[0] * pixels.shape[1] / area


def cast(image: Image.Image) -> float:
    """Returns the distance of the mean color from neutral in CIELAB, from 0 to about 130.

    Strong colors count little, so a red thing on a gray ground scores near 0, and a gray ground
    with a tint scores the chroma of the tint. An image that has only one strong color, such as a
    meadow, scores high as well.

    Args:
        image: an RGB image.
    """
    chroma = _lab(_reduced(image, _CAST_PX))[..., 1:]
    weights = 1 / (1 + (np.square(chroma).sum(-1) / _STRONG_CHROMA**2))
    mean = (chroma * weights[..., None]).sum((0, 1)) / weights.sum()
    return float(np.hypot(*mean))


def changed(source: Image.Image, image: Image.Image) -> float:
    """Returns the share of the area that an edit has changed visibly, from 0 to 1.

    Compression, another size and slightly other colors do not count.

    Args:
        source: the image before the edit, RGB. It is stretched to the shape of the other one.
        image: the image after it, RGB.
    """
    longest = max(image.size)
    scale = min(_EDIT_PX, longest, max(source.size)) / longest
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    before, after = (_lab(one.resize(size, Image.Resampling.BOX)) for one in (source, image))
    is_other = np.linalg.norm(after - before, axis=-1) >= _VISIBLE
    # Compression changes thin lines along edges, which have a minority in every neighborhood.
    areas = Image.fromarray(is_other.astype(np.uint8)).filter(ImageFilter.MedianFilter(3))
    return float(np.asarray(areas).mean())


IMAGE_SCORES: Mapping[str, Callable[[Image.Image], float]] = {
    "short_px": short_px,
    "aspect": aspect,
    "spread": spread,
    "border": border,
    "cast": cast,
}
EDIT_SCORES: Mapping[str, Callable[[Image.Image, Image.Image], float]] = {"changed": changed}


def image_scores(image: Image.Image, source: Image.Image | None = None) -> dict[str, float]:
    """Returns the scores of an image by name.

    Args:
        image: an RGB image.
        source: the image that it is an edit of; without one, it gets no scores of edits.
    """
    scores = {name: score(image) for name, score in IMAGE_SCORES.items()}
    if source is not None:
        scores |= {name: score(source, image) for name, score in EDIT_SCORES.items()}
    return scores


def _reduced(image: Image.Image, px: int) -> Image.Image:
    """Returns an image whose longer side has less than twice as many pixels as `px`."""
    return image.reduce(max(max(image.size) // px, 1))


def _frame_lines(pixels: NDArray[np.int16]) -> int:
    """Returns the number of lines from the first one that have its color, up to a straight edge."""
    color = np.median(pixels[0], axis=0)
    shares = (np.abs(pixels - color).max(-1) <= _SAME_LEVEL).mean(1)
    others = np.flatnonzero(shares < _PLAIN)
    if not others.size:
        return len(pixels)
    num_lines = int(others[0])
    inside = shares[num_lines : num_lines + _EDGE_LINES]
    return num_lines if inside.min() <= _MIXED else 0


def _lab(image: Image.Image) -> NDArray[np.float32]:
    """Returns an sRGB image as CIELAB: lightness from 0 to 100, then the two axes of color."""
    rgb = np.asarray(image, dtype=np.float32) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    ratios = linear @ _XYZ_OF_RGB.T / _WHITE_D65
    x, y, z = np.moveaxis(
        np.where(ratios > 216 / 24389, np.cbrt(ratios), (24389 / 27 * ratios + 16) / 116), -1, 0
    )
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
