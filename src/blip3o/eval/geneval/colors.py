"""The color of an object, as GenEval reads it: a crop of the object against texts, by CLIP."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blip3o.eval.geneval.rules import COLORS

BACKGROUND = "#999999"
"""Color of the pixels that do not belong to the object."""

_LOGIT_SCALE = np.float32(100)
_MOST_CROPS = 16
"""Crops that are encoded together."""


class ImageTextEncoder(Protocol):
    """Encodes images and texts in one space; `blip3o.eval.clip.ClipEncoder` is one.

    Attributes:
        name: the encoder and its weights, as results state them.
    """

    name: str

    def embed_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Returns the embeddings of RGB images of any size, [N, D], of any length."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns the embeddings of texts, [N, D], of any length."""
        ...


class ColorClassifier:
    """Reads the colors of objects.

    Args:
        encoder: CLIP; the published scores use OpenAI's ViT-L/14.
    """

    def __init__(self, encoder: ImageTextEncoder) -> None:
        self._encoder = encoder
        self._heads: dict[str, NDArray[np.float32]] = {}

    def colors(self, name: str, crops: Sequence[Image.Image]) -> list[str]:
        """Returns the color of each object, a name from `COLORS`; of equal ones the first.

        Args:
            name: class of the objects.
            crops: an image of each object, from `crop_of`.
        """
        if name not in self._heads:
            texts = color_texts(name)
            embeddings = self._encoder.embed_texts([text for three in texts for text in three])
            self._heads[name] = color_head(embeddings.reshape(*np.shape(texts), -1))
        head = self._heads[name]
        found: list[str] = []
        for start in range(0, len(crops), _MOST_CROPS):
            embeddings = self._encoder.embed_images(crops[start : start + _MOST_CROPS])
            logits = color_logits(embeddings, head)
            found += [COLORS[number] for number in logits.argmax(axis=1)]
        return found


def color_texts(name: str) -> list[list[str]]:
    """Returns the three texts of each color for a class, in the order of `COLORS`."""
    return [
        [
            f"a photo of a {color} {name}",
            f"a photo of a {color}-colored {name}",
            f"a photo of a {color} object",
        ]
        for color in COLORS
    ]


def color_head(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the classifier of a class, [D, 10], with columns of length 1.

    Args:
        embeddings: embeddings of the texts of each color, [10, 3, D], of any length.

    Reference:
        parity family `geneval` (`color_heads`), within 1e-6
    """
    return _normalized(_normalized(embeddings).mean(axis=1)).T


def color_logits(embeddings: NDArray[np.float32], head: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns 100 x the cosines of images and colors, [N, 10].

    Args:
        embeddings: embeddings of images, [N, D], of any length.
        head: the classifier, [D, 10].

    Reference:
        parity family `geneval` (`color_heads`), within 1e-4
    """
    return _LOGIT_SCALE * (_normalized(embeddings) @ head)


def _normalized(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def crop_of(
    image: Image.Image,
    box: Sequence[float] | NDArray[np.float32],
    mask: NDArray[np.bool_] | None,
    *,
    background: str | None = BACKGROUND,
    is_cut: bool = True,
) -> Image.Image:
    """Returns the image of one object, RGB.

    The corners of the box are rounded, halves to even; parts outside the image are black.

    Args:
        image: the whole image; transparency is dropped, not blended.
        box: x0, y0, x1, y1 in pixels; further numbers are ignored.
        mask: pixels of the object, bool [H, W]; None keeps all pixels.
        background: color of the other pixels, as Pillow names colors; None keeps them.
        is_cut: whether the box is cut out.

    Raises:
        ValueError: if the mask does not have the size of the image.

    Reference:
        parity family `geneval` (`crops`). GenEval's own scores use the defaults.
    """
    crop = image.convert("RGB")
    if mask is not None and background is not None:
        if mask.shape != (image.height, image.width):
            raise ValueError(f"the mask is {mask.shape}, the image {image.height, image.width}")
        plain = Image.new("RGB", image.size, background)
        crop = Image.composite(crop, plain, Image.fromarray(mask.astype(np.uint8) * 255))
    if not is_cut:
        return crop
    x_0, y_0, x_1, y_1 = (round(float(corner)) for corner in box[:4])
    # CLIP cannot read a box that rounds to nothing, so it gets one pixel.
    return crop.crop((x_0, y_0, max(x_1, x_0 + 1), max(y_1, y_0 + 1)))
