"""Near duplicates: texts of almost the same words, and images that look the same.

An index finds the first of the kept texts or images that a new one repeats. Both are exact: they
find every pair within the limit, and no random number takes part.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.curate.words import MARKS, tokens

_HASH_SIDE = 16
"""Side of the square of frequencies in the hash of an image, which has one bit for each."""
_WORD_BITS = 16
_NUM_WORDS = _HASH_SIDE**2 // _WORD_BITS
MOST_BITS = 2 * _NUM_WORDS - 1
"""Largest distance of images. Of two hashes within it, one word differs in at most one bit."""
_CHANGES = (0, *(1 << bit for bit in range(_WORD_BITS)))
_COLOR_CELLS = (4, 4)
_SAME_COLOR = 32
"""Most difference of a color, of 255, in any cell of two images that look the same."""


@dataclasses.dataclass(frozen=True)
class Near:
    """A kept text or image that another one repeats.

    Args:
        key: its number.
        likeness: how much they are alike, in words.
    """

    key: int
    likeness: str


class Mark(Protocol):
    """What an index compares of one text or image."""

    def first(self) -> Near | None:
        """Returns the kept one with the lowest number that this one repeats."""
        ...

    def keep(self, key: int) -> None:
        """Keeps this one, so that later ones are compared with it."""
        ...


def word_runs(text: str, num_words: int, scope: str = "") -> frozenset[str]:
    """Returns the runs of words of a text; case, accents and punctuation do not count.

    Args:
        text: the text. One in a language without spaces has no words but its clauses.
        num_words: number of words in a run; a shorter text is one run.
        scope: texts of different scopes have no run in common.
    """
    words = [token for token in tokens(text) if token not in MARKS]
    starts = range(max(len(words) - num_words, 0) + 1)
    return frozenset("\n".join((scope, *words[start : start + num_words])) for start in starts)


class NearTexts:
    """Finds texts whose runs of words overlap, without comparing all pairs.

    Only texts with a rare run in common are compared. Two sets that overlap enough have one among
    the rarest of each: if all those were missing in the other set, too few would be left.

    Args:
        least: least overlap (Jaccard index) of texts that repeat each other, above 0.
        texts: the runs of all texts, from which it learns which runs are rare.
    """

    def __init__(self, least: float, texts: Collection[frozenset[str]]) -> None:
        self.least = least
        self.index: dict[str, list[int]] = {}
        self.kept: dict[int, frozenset[str]] = {}
        self._counts = Counter(run for runs in texts for run in runs)

    def mark(self, runs: frozenset[str]) -> "TextMark":
        """Returns what is compared of a text, one of those that the index has learned from."""
        ordered = sorted(runs, key=lambda run: (self._counts[run], run))
        # A product that should be whole may lie just above it.
        num_common = math.ceil(self.least * len(runs) - 1e-9)
        return TextMark(self, runs, ordered[: len(runs) - num_common + 1])


@dataclasses.dataclass(frozen=True)
class TextMark:
    """The runs of a text, and the rarest of them; see `Mark`."""

    texts: NearTexts
    runs: frozenset[str]
    rarest: Sequence[str]

    def first(self) -> Near | None:
        """Returns the kept text with the lowest number that this one repeats."""
        for key in sorted({key for run in self.rarest for key in self.texts.index.get(run, ())}):
            other = self.texts.kept[key]
            num_common = len(self.runs & other)
            overlap = num_common / (len(self.runs) + len(other) - num_common)
            if overlap >= self.texts.least:
                return Near(key, f"{overlap:.2f}")
        return None

    def keep(self, key: int) -> None:
        """Keeps this text, so that later ones are compared with it."""
        for run in self.rarest:
            self.texts.index.setdefault(run, []).append(key)
        self.texts.kept[key] = self.runs


class NearImages:
    """Finds images that look the same: their perceptual hashes and their coarse colors are near.

    The hash is that of `imagehash.phash`, 256 bits. It survives recompression and another size,
    not a crop. It sees brightness only, which is why colors are compared too.

    Only hashes that share one of their 16 words, but for a bit, are compared. If all words differed
    in two bits or more, the distance would be above `MOST_BITS`.

    Args:
        most_bits: most bits in which the hashes differ, from 0 to `MOST_BITS`.

    Raises:
        UsageError: if the library is missing.
    """

    def __init__(self, most_bits: int) -> None:
        try:
            import imagehash
        except ImportError as error:
            message = "near images need imagehash; install it: pip install 'blip3o[curate]'"
            raise UsageError(message) from error
        self._hash = imagehash.phash
        self.most_bits = most_bits
        self.index: dict[tuple[int, int], list[int]] = {}
        self.kept: dict[int, ImageMark] = {}

    def mark(self, image: Image.Image, source: str = "") -> "ImageMark":
        """Returns the hash and the colors of an image.

        Args:
            image: an RGB image.
            source: hash of the file that it is an edit of. Edits of one source may look alike.
        """
        bits = np.packbits(self._hash(image, hash_size=_HASH_SIDE).hash).tobytes()
        cells = image.resize(_COLOR_CELLS, Image.Resampling.BOX)
        colors = np.asarray(cells, dtype=np.int16)
        return ImageMark(self, int.from_bytes(bits, "big"), colors, source)


@dataclasses.dataclass(frozen=True)
class ImageMark:
    """The hash and the colors of an image; see `Mark`."""

    images: NearImages
    bits: int
    colors: NDArray[np.int16]
    source: str

    def _words(self) -> list[tuple[int, int]]:
        """Returns the places and values of the words of the hash."""
        mask = (1 << _WORD_BITS) - 1
        return [(place, self.bits >> place * _WORD_BITS & mask) for place in range(_NUM_WORDS)]

    def first(self) -> Near | None:
        """Returns the kept image with the lowest number that this one repeats."""
        index = self.images.index
        found = {
            key
            for place, value in self._words()
            for change in _CHANGES
            for key in index.get((place, value ^ change), ())
        }
        for key in sorted(found):
            other = self.images.kept[key]
            distance = (self.bits ^ other.bits).bit_count()
            if distance <= self.images.most_bits and self._may_repeat(other):
                return Near(key, f"{distance} of {_HASH_SIDE**2} bits")
        return None

    def _may_repeat(self, other: "ImageMark") -> bool:
        if self.source and self.source == other.source:
            return False
        return int(np.abs(self.colors - other.colors).max()) <= _SAME_COLOR

    def keep(self, key: int) -> None:
        """Keeps this image, so that later ones are compared with it."""
        for word in self._words():
            self.images.index.setdefault(word, []).append(key)
        self.images.kept[key] = self
