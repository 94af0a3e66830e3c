"""The settings of written text: how each next token is chosen and where an answer ends."""

import dataclasses
import math
import operator
import secrets
from collections.abc import Sequence
from typing import Any, Self, TypedDict, Unpack

import numpy as np
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.rng import numpy_rng
from blip3o.generate.checks import texts_of

_MOST_STOPS = 16
LONGEST_STOP = 1000
"""Characters of a stop text."""
_NUM_SEEDS = 2**63


class ChoiceSettings(TypedDict, total=False):
    """The settings of `TextSampling` but the length, as keyword arguments."""

    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: str | Sequence[str]


class TextSettings(ChoiceSettings, total=False):
    """The settings of `TextSampling` as keyword arguments; what is left out has its default."""

    max_new_tokens: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextSampling:
    """How an answer is written; the default is greedy.

    Args:
        max_new_tokens: longest answer in tokens; the model's own number if None.
        temperature: 0 takes the likeliest token; above 0 a token is drawn, and a higher
            temperature makes unlikely tokens likelier.
        top_p: a token is drawn from the smallest set whose probabilities add up to this share,
            in (0, 1]; 1 keeps all.
        top_k: a token is drawn from this many likeliest ones; 0 keeps all.
        seed: decides which tokens are drawn; None draws a seed.
        stop: texts that end an answer; they are not part of it.

    Raises:
        UsageError: for a value of another type, a number out of range, an empty or over-long stop
            text or too many of them.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_whole("top_k", self.top_k)
        for name in ("max_new_tokens", "seed"):
            if getattr(self, name) is not None:
                _require_whole(name, getattr(self, name))
        _require_number("temperature", self.temperature)
        _require_number("top_p", self.top_p)
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"temperature must be 0 or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.top_k < 0:
            raise UsageError(f"top_k must be 0 or more, got {self.top_k}")
        if self.seed is not None and not 0 <= self.seed < _NUM_SEEDS:
            raise UsageError(f"seed must be from 0 to 2^63 - 1, got {self.seed}")
        if not all(self.stop):
            raise UsageError("a stop text is empty")
        if len(self.stop) > _MOST_STOPS:
            raise UsageError(f"at most {_MOST_STOPS} stop texts, got {len(self.stop)}")
        if any(len(text) > LONGEST_STOP for text in self.stop):
            raise UsageError(f"a stop text has more than {LONGEST_STOP} characters")

    @classmethod
    def of(cls, **settings: Unpack[TextSettings]) -> Self:
        """Returns the settings of keyword arguments; a single stop text may stand by itself.

        Args:
            settings: see the class.

        Raises:
            UsageError: see the class.
        """
        others: Any = dict(settings)
        stop = others.pop("stop", None)
        return cls(stop=tuple(texts_of(() if stop is None else stop, "stop text")), **others)

    def seeded(self) -> Self:
        """Returns the same settings with a seed: their own, or one that is drawn now."""
        seed = secrets.randbelow(_NUM_SEEDS) if self.seed is None else self.seed
        return dataclasses.replace(self, seed=seed)


def _require_whole(name: str, value: Any) -> None:  # noqa: ANN401  (whatever a caller gave)
    try:
        operator.index(value)
    except TypeError:
        raise UsageError(f"{name} must be a whole number, got {value!r}") from None
    if isinstance(value, bool):
        raise UsageError(f"{name} must be a whole number, got {value!r}")


def _require_number(name: str, value: Any) -> None:  # noqa: ANN401
    try:
        is_number = not isinstance(value, str | bytes | bool) and float(value) is not None
    except (TypeError, ValueError):
        is_number = False
    if not is_number:
        raise UsageError(f"{name} must be a number, got {value!r}")


class TokenChooser:
    """Chooses the tokens of one answer; no other answer has a say in it.

    The token at place t of answer k is a function of the logits there and of (seed + k, t):

    1. The tokens are ranked by their logits, equal ones by their ids. The first `top_k` stay.
    2. Weights are exp((logit - largest logit) / temperature), in fp64. Of the tokens that stayed,
       the shortest run from the top stays whose weights add up to `top_p` of all that stayed.
    3. u in [0, 1) is number t of the stream "text" of seed + k (modulo 2^63), see
       `core.rng.numpy_rng`. The token is the first, in the order of ids, at which the sum of the
       weights exceeds u times their total.

    Args:
        sampling: with a seed where the temperature is above 0.
        number: k, the number of the answer within its request.
    """

    def __init__(self, sampling: TextSampling, number: int = 0) -> None:
        self._sampling = sampling
        self._seed = ((sampling.seed or 0) + number) % _NUM_SEEDS

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken, the first of equal ones."""
        return self._sampling.temperature == 0

    def draw(self, logits: Tensor, place: int) -> int:
        """Returns the id of the token that is drawn.

        Args:
            logits: of every token, [V]; -inf for those that may not be.
            place: t, the number of tokens before it in the answer.

        Raises:
            ValueError: if the logits hold values that are not numbers.
        """
        scores = logits.double().cpu().numpy()
        top = scores.max()
        if not np.isfinite(top):
            raise ValueError("the logits hold values that are not numbers")
        with np.errstate(over="ignore"):  # -inf, whose weight is 0
            weights = np.exp((scores - top) / self._sampling.temperature)
        kept = _likeliest(scores, self._sampling.top_k)
        kept = kept[_nucleus(scores[kept], weights[kept], self._sampling.top_p)]
        sums = weights[kept].cumsum()
        # Below the total even where the product is rounded up to it.
        level = numpy_rng(self._seed, "text", place).random() * sums[-1]
        level = min(level, np.nextafter(sums[-1], 0))
        return int(kept[np.searchsorted(sums, level, side="right")])


def _likeliest(scores: np.ndarray, count: int) -> np.ndarray:
    """Returns the ids of so many largest scores, ascending; 0 stands for all."""
    ids = np.arange(len(scores))
    if not 0 < count < len(scores):
        return ids
    least = np.partition(scores, -count)[-count]
    above = scores > least
    equal = ids[scores == least][: count - int(above.sum())]
    return np.sort(np.concatenate([ids[above], equal]))


def _nucleus(scores: np.ndarray, weights: np.ndarray, share: float) -> np.ndarray:
    """Returns, ascending, the places of the largest weights that add up to a share of all."""
    places = np.arange(len(weights))
    if share == 1:
        return places
    total = weights.sum()
    # What cannot be among them is left out before the sort, which is the slow part: all weights
    # up to this one together are less than the rest that is not needed.
    places = places[weights > 0.999 * (1 - share) * total / len(weights)]
    order = places[np.argsort(-scores[places], kind="stable")]
    sums = weights[order].cumsum()
    count = int(np.searchsorted(sums, share * total, side="left")) + 1
    return np.sort(order[:count])
