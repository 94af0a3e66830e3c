"""Finds texts of training data that repeat a prompt of a benchmark, also in other words."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from blip3o.curate.words import MARKS, Meaning, meaning_of, tokens

MatchKind = Literal["exact", "passage", "meaning", "near"]


@dataclasses.dataclass(frozen=True)
class BenchmarkPrompt:
    """A prompt that training data must not hold.

    Args:
        benchmark: name of the benchmark.
        text: the prompt.
    """

    benchmark: str
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """A prompt that a text repeats.

    Args:
        kind: "exact" for the same words in the same order, "passage" for a common run of words,
            "meaning" for the same things, attributes, numbers and relations in any wording,
            "near" for nearly all of them.
        prompt: the prompt.
    """

    kind: MatchKind
    prompt: BenchmarkPrompt

    @property
    def reason(self) -> str:
        """The reason to leave the text out of training."""
        return f"repeats a prompt of {self.prompt.benchmark} ({self.kind}): {self.prompt.text}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchSettings:
    """Limits of a match.

    Args:
        passage_words: words of a common run, without a gap, that make a passage.
        long_words: a prompt with at least this many different words that count is long.
        long_share: share of a long prompt's words that a text must have, in any order.
        short_missing: most words of a short prompt that a text may lack, as a share. Its attributes
            must be the same: colors, numbers, sizes, shapes and materials.
        short_extra: most further words of a text, as a share of the words of a short prompt; one
            is allowed in any case if the prompt has two words that are no attributes.
    """

    passage_words: int = 13
    long_words: int = 12
    long_share: float = 0.55
    short_missing: float = 0.2
    short_extra: float = 0.25

    def __post_init__(self) -> None:
        if self.passage_words < 2 or self.long_words < 1:
            raise ValueError("passage_words must be at least 2, and long_words at least 1")
        if not 0 < self.long_share <= 1 or not 0 <= self.short_missing < 1 or self.short_extra < 0:
            raise ValueError(
                "long_share must be in (0, 1], short_missing in [0, 1), short_extra not below 0"
            )


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    """A prompt with its meaning, and how many of its words a text may lack or add."""

    prompt: BenchmarkPrompt
    meaning: Meaning
    least: int
    most_extra: float

    def compare(self, text: Meaning) -> MatchKind | None:
        """Returns how a text repeats the prompt by its words, or None."""
        own, theirs = text.words, self.meaning.words
        num_common = len(own & theirs)
        if num_common < self.least or len(own) - num_common > self.most_extra:
            return None
        if self.most_extra < math.inf and (
            text.attributes != self.meaning.attributes or text.contradicts(self.meaning)
        ):
            return None
        return "meaning" if own == theirs else "near"


class PromptIndex:
    """Prompts of benchmarks, and the search for them in texts.

    A text needs at least one of the rarest words of a prompt to have enough of its words. So only
    prompts under the words of a text are compared with it.

    Args:
        prompts: the prompts; texts without a word that counts are left out.
        settings: limits of a match.
    """

    def __init__(
        self, prompts: Iterable[BenchmarkPrompt], settings: MatchSettings | None = None
    ) -> None:
        self._settings = settings or MatchSettings()
        self._exact: dict[str, BenchmarkPrompt] = {}
        self._passages: dict[tuple[str, ...], BenchmarkPrompt] = {}
        self._entries: dict[str, list[_Entry]] = {}
        self._of_size: dict[tuple[str, int], list[_Entry]] = {}
        entries: list[_Entry] = []
        for prompt in prompts:
            found = _words(prompt.text)
            if not found:
                continue
            self._exact.setdefault(" ".join(found), prompt)
            for run in _runs(found, self._settings.passage_words):
                self._passages.setdefault(run, prompt)
            meaning = meaning_of(tokens(prompt.text))
            if meaning.words:
                entries.append(_Entry(prompt, meaning, *self._limits(meaning)))
        self.num_prompts = len(self._exact)
        counts = Counter(word for entry in entries for word in entry.meaning.words)
        for entry in entries:
            ordered = sorted(entry.meaning.words, key=lambda word: (counts[word], word))
            for word in ordered[: len(ordered) - entry.least + 1]:
                self._entries.setdefault(word, []).append(entry)

    def match(self, text: str) -> Match | None:
        """Returns a prompt that a text repeats, the closest kind first; None if there is none."""
        found = tokens(text)
        words = [token for token in found if token not in MARKS]
        if exact := self._exact.get(" ".join(words)):
            return Match(kind="exact", prompt=exact)
        for run in _runs(words, self._settings.passage_words):
            if run in self._passages:
                return Match(kind="passage", prompt=self._passages[run])
        meaning = meaning_of(found)
        for word in sorted(meaning.words & self._entries.keys()):
            for entry in self._candidates(word, len(meaning.words)):
                if kind := entry.compare(meaning):
                    return Match(kind=kind, prompt=entry.prompt)
        return None

    def _candidates(self, word: str, size: int) -> list[_Entry]:
        """Returns the entries under a word that a text of a number of words may repeat."""
        found = self._of_size.get((word, size))
        if found is None:
            found = [
                entry
                for entry in self._entries[word]
                if entry.least <= size <= len(entry.meaning.words) + entry.most_extra
            ]
            self._of_size[word, size] = found
        return found

    def _limits(self, meaning: Meaning) -> tuple[int, float]:
        """Returns the least number of a prompt's words in a text, and the most others."""
        settings, num_words = self._settings, len(meaning.words)
        if num_words >= settings.long_words:
            return math.ceil(settings.long_share * num_words), math.inf
        num_missing = math.floor(settings.short_missing * num_words)
        # Another word may stand in the place of a missing one.
        has_several = len(meaning.words - meaning.attributes) > 1
        num_extra = max(math.floor(settings.short_extra * num_words), int(has_several))
        return num_words - num_missing, num_extra + num_missing


def _words(text: str) -> list[str]:
    return [token for token in tokens(text) if token not in MARKS]


def _runs(words: Sequence[str], length: int) -> Iterable[tuple[str, ...]]:
    """Returns all runs of a length."""
    return zip(*(words[start:] for start in range(length)), strict=False)
