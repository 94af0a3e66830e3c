"""The settings of written text: how each next token is chosen and where an answer ends."""

import dataclasses
import math

from blip3o.core.errors import UsageError

_MOST_STOPS = 16


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
        UsageError: for a number out of range, an empty stop text or too many of them.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"temperature must be 0 or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.top_k < 0:
            raise UsageError(f"top_k must be 0 or more, got {self.top_k}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise UsageError(f"seed must be from 0 to 2^63 - 1, got {self.seed}")
        if not all(self.stop):
            raise UsageError("a stop text is empty")
        if len(self.stop) > _MOST_STOPS:
            raise UsageError(f"at most {_MOST_STOPS} stop texts, got {len(self.stop)}")
