"""The words of a grammar: entries with forms, the gaps that name them, and the filling of gaps."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from blip3o.data.scenes.things import plural

_SENTENCE_START = re.compile(r"(?:^|(?<=[.!?] ))[a-z]")
_YOU, _SILENT_H = re.compile(r"eu|uni(?!n|m)|uk|us[eu]|ute|one\b"), re.compile(r"hour|honest|heir")
"""Words that begin with a vowel but no vowel sound, and the opposite."""
WORD, ARTICLE, MANY = "word", "a", "many"
"""Forms that every entry has: the word itself, the word with its article, and the plural."""


@dataclass(frozen=True)
class Gap:
    """A place for a word: the name of its list, which entry of the list, and which form."""

    words: str
    label: str
    form: str


Pattern = tuple[str | int | Gap, ...]
"""A text with gaps, in parts; a number alone is a number."""


@dataclass(frozen=True)
class Entry:
    """An entry of a word list: its forms and its weight."""

    forms: Mapping[str, Pattern]
    weight: float


class Words:
    """The entries that the gaps of one template, or of one entry, have drawn.

    Args:
        lists: all word lists by name.
        rng: draws an entry when its gap is met first.
    """

    def __init__(self, lists: Mapping[str, Sequence[Entry]], rng: np.random.Generator) -> None:
        self._lists, self._rng = lists, rng
        self._drawn: dict[str, dict[str, tuple[int, Words]]] = {}

    def text(self, pattern: Pattern) -> str:
        """Returns a text with its gaps filled."""
        return str(self._value(pattern))

    def facts(self, data: Any) -> Any:  # noqa: ANN401 - any JSON
        """Returns JSON whose texts are patterns, with their gaps filled."""
        if isinstance(data, Mapping):
            return {key: self.facts(one) for key, one in data.items()}
        if isinstance(data, list):
            return [self.facts(one) for one in data]
        return self._value(data)

    def _value(self, pattern: Pattern) -> str | int:
        parts = [self._form(part) if isinstance(part, Gap) else part for part in pattern]
        return parts[0] if len(parts) == 1 else "".join(map(str, parts))

    def _form(self, gap: Gap) -> str | int:
        entry, words = self._entry(gap)
        if gap.form in entry.forms:
            return words._value(entry.forms[gap.form])
        make = {ARTICLE: _with_article, MANY: _many}.get(gap.form, str)
        return make(words.text(entry.forms[WORD]))

    def _entry(self, gap: Gap) -> "tuple[Entry, Words]":
        drawn, entries = self._drawn.setdefault(gap.words, {}), self._lists[gap.words]
        if gap.label not in drawn:
            taken = {number for number, _ in drawn.values()}
            weights = [0.0 if n in taken else one.weight for n, one in enumerate(entries)]
            drawn[gap.label] = (draw(weights, self._rng), Words(self._lists, self._rng))
        number, words = drawn[gap.label]
        return entries[number], words


def draw(weights: Sequence[float], rng: np.random.Generator) -> int:
    """Returns a random index; the weights need not sum to 1."""
    shares = np.array(weights)
    return int(rng.choice(len(weights), p=shares / shares.sum()))


def spoken(text: str) -> str:
    """Returns a text whose sentences begin with capital letters, if it ends as a sentence."""
    if not text.endswith((".", "!", "?", '."', '!"', '?"')):
        return text
    return _SENTENCE_START.sub(lambda found: found[0].upper(), text)


def _with_article(words: str) -> str:
    low = words.lower()
    is_vowel = low.startswith(tuple("aeiou")) and not _YOU.match(low)
    return f"{'an' if is_vowel or _SILENT_H.match(low) else 'a'} {words}"


def _many(words: str) -> str:
    """Returns the plural: "cup of tea" -> "cups of tea"."""
    head, of, rest = words.partition(" of ")
    start, space, last = head.rpartition(" ")
    return f"{start}{space}{plural(last)}{of}{rest}"
