"""The settings of text generation, checked without torch."""

import dataclasses
import math
import operator
import secrets
from collections.abc import Sequence
from typing import Self, TypedDict, Unpack

from blip3o.core.errors import UsageError
from blip3o.generate.checks import texts_of

_MOST_STOPS = 16
LONGEST_STOP = 1000
"""Most characters of a stop text."""
NUM_SEEDS = 2**63
"""Number of seeds; they are 0 to NUM_SEEDS - 1."""


class ChoiceSettings(TypedDict, total=False):
    """The settings of `TextSampling` except the length, as keyword arguments."""

    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: str | Sequence[str]


class TextSettings(ChoiceSettings, total=False):
    """The settings of `TextSampling` as keyword arguments; all are optional."""

    max_new_tokens: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextSampling:
    """Settings of text generation; greedy by default.

    Args:
        max_new_tokens: longest answer in tokens; None for the model's own number.
        temperature: 0 takes the likeliest token; above 0 a token is drawn, and a higher
            temperature makes unlikely tokens likelier.
        top_p: draws from the smallest set of tokens whose probabilities add up to this share, in
            (0, 1]; 1 keeps all tokens.
        top_k: draws from this many likeliest tokens; 0 keeps all tokens.
        seed: seed of the draws, 0 to 2^63 - 1; None draws a seed.
        stop: texts that end an answer; they are not part of it.

    Raises:
        UsageError: for a value of another type, a number out of range, an empty or over-long stop
            text, or more than 16 stop texts.
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
        if self.seed is not None and not 0 <= self.seed < NUM_SEEDS:
            raise UsageError(f"seed must be from 0 to 2^63 - 1, got {self.seed}")
        if not all(self.stop):
            raise UsageError("a stop text is empty")
        if len(self.stop) > _MOST_STOPS:
            raise UsageError(f"at most {_MOST_STOPS} stop texts, got {len(self.stop)}")
        if any(len(text) > LONGEST_STOP for text in self.stop):
            raise UsageError(f"a stop text has more than {LONGEST_STOP} characters")

    @classmethod
    def of(cls, **settings: Unpack[TextSettings]) -> Self:
        """Returns the settings of keyword arguments; `stop` may be a single text.

        Raises a UsageError as the class does.
        """
        given = settings.get("stop")
        stop = tuple(texts_of(() if given is None else given, "stop text"))
        return dataclasses.replace(cls(), **{**settings, "stop": stop})

    def seeded(self) -> Self:
        """Returns the same settings with a seed; a missing seed is drawn now."""
        seed = secrets.randbelow(NUM_SEEDS) if self.seed is None else self.seed
        return dataclasses.replace(self, seed=seed)


def _require_whole(name: str, value: int) -> None:
    try:
        operator.index(value)
    except TypeError:
        raise UsageError(f"{name} must be a whole number, got {value!r}") from None
    if isinstance(value, bool):
        raise UsageError(f"{name} must be a whole number, got {value!r}")


def _require_number(name: str, value: float) -> None:
    try:
        is_number = not isinstance(value, str | bytes | bool) and float(value) is not None
    except (TypeError, ValueError):
        is_number = False
    if not is_number:
        raise UsageError(f"{name} must be a number, got {value!r}")
