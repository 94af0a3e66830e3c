"""Chooses the next token of an answer from its logits."""

import numpy as np
from torch import Tensor

from blip3o.core.rng import numpy_rng
from blip3o.generate.text_settings import NUM_SEEDS, TextSampling


class TokenChooser:
    """Chooses the tokens of one answer, independently of all other answers.

    The token at place t of answer k is a function of the logits there and of (seed + k, t):

    1. The tokens are ranked by their logits, equal ones by their ids. The first `top_k` stay.
    2. Weights are exp((logit - largest logit) / temperature), in fp64. Of these tokens, the
       shortest run from the top stays whose weights add up to `top_p` of their total.
    3. u in [0, 1) is number t of the stream "text" of seed + k (modulo 2^63), see
       `core.rng.numpy_rng`. The token is the first, in the order of ids, at which the sum of the
       weights exceeds u times their total.

    Args:
        sampling: with a seed where the temperature is above 0.
        number: k, the number of the answer within its request.
    """

    def __init__(self, sampling: TextSampling, number: int = 0) -> None:
        self._sampling = sampling
        self._seed = ((sampling.seed or 0) + number) % NUM_SEEDS

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken; of equal ones, the one with the smallest id."""
        return self._sampling.temperature == 0

    def draw(self, logits: Tensor, place: int) -> int:
        """Returns the id of the token that is drawn.

        Args:
            logits: logits of the vocabulary, [V]; -inf for forbidden tokens.
            place: number of tokens before it in the answer (t).

        Raises:
            ValueError: if the logits hold NaN, or no finite number.
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
        # The product may be rounded up to the total, but the level must be below it.
        level = numpy_rng(self._seed, "text", place).random() * sums[-1]
        level = min(level, np.nextafter(sums[-1], 0))
        return int(kept[np.searchsorted(sums, level, side="right")])


def _likeliest(scores: np.ndarray, count: int) -> np.ndarray:
    """Returns the ids of the `count` largest scores, ascending; all ids for count 0."""
    ids = np.arange(len(scores))
    if not 0 < count < len(scores):
        return ids
    least = np.partition(scores, -count)[-count]
    above = scores > least
    equal = ids[scores == least][: count - int(above.sum())]
    return np.sort(np.concatenate([ids[above], equal]))


def _nucleus(scores: np.ndarray, weights: np.ndarray, share: float) -> np.ndarray:
    """Returns the indices, ascending, of the largest weights that add up to a share of all."""
    places = np.arange(len(weights))
    if share == 1:
        return places
    total = weights.sum()
    # The sort is slow, so indices that cannot be among them are left out first: all weights up to
    # this bound add up to less than the share of the total that is not needed.
    places = places[weights > 0.999 * (1 - share) * total / len(weights)]
    order = places[np.argsort(-scores[places], kind="stable")]
    sums = weights[order].cumsum()
    count = int(np.searchsorted(sums, share * total, side="left")) + 1
    return np.sort(order[:count])
