"""The meaning of a caption, in a form that is equal for different wordings of the same scene.

    "a photo of a red car left of two dogs"        things {car, red}, {2, dog}; car first, across
    "Please draw two dogs to the right of a red automobile"     the same

Inflections, articles, polite phrases, names of the medium and the order of the things do not count.
`words.yaml` lists synonyms and words without a meaning. Words that it does not know are reduced to
their stem, so the form works for any English text; in other languages, only equal words are equal.
"""

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from blip3o.core.errors import UsageError

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_CJK}]+|[^\W_{_CJK}]+(?:'[^\W_{_CJK}]+)?|[,;.:!?()/|&+]")
MARKS = frozenset(",;.:!?()/|&+")
"""Tokens that are no words."""
_TIMES = re.compile(r"(\d+)x")
_ARTICLES = {"a", "an", "the"}
_SILENT = "~"
"""Begins the basic form of words without a meaning, so no stem is equal to one ("container")."""
_PRONOUNS = {f"{_SILENT}{word}" for word in ("it", "its", "them", "their")}
_OF = {f"{_SILENT}{word}" for word in ("of", "from")}
_PAIR = "pair"
_END = f"{_SILENT}."
"""A separator."""
_ACROSS, _UP = "@across", "@up"
"""Stand for all words of a place along an axis, in the words of a meaning."""


def tokens(text: str) -> list[str]:
    """Returns the words and marks of a text in lower case, without accents."""
    if not text.isascii():
        wide = unicodedata.normalize("NFKD", text.replace("\u2019", "'"))
        text = "".join(letter for letter in wide if not unicodedata.combining(letter))
        text = unicodedata.normalize("NFC", text)  # syllables of Korean stay whole
    return _TOKEN.findall(text.lower())


@dataclasses.dataclass(frozen=True)
class Meaning:
    """The meaning of a text.

    Args:
        sequence: its words, each as the one name of all its synonyms and inflections.
        words: the words that count; all words of place along an axis are one.
    """

    sequence: Sequence[str]
    words: frozenset[str]

    @functools.cached_property
    def groups(self) -> list[tuple[int, frozenset[str]]]:
        """The words between separators, as groups, each with the place of its first word."""
        return list(self._groups())

    @functools.cached_property
    def things(self) -> list[set[str]]:
        """The groups; those that share a word are one."""
        things: list[set[str]] = []
        for _, group in self.groups:
            joined = set(group)
            for other in [one for one in things if one & joined]:
                things.remove(other)
                joined |= other
            things.append(joined)
        return things

    @functools.cached_property
    def attributes(self) -> frozenset[str]:
        """The colors, numbers, sizes, shapes and materials."""
        known = _table().attributes
        return frozenset(word for word in self.words if word in known or word.isdecimal())

    @functools.cached_property
    def first(self) -> frozenset[str] | None:
        """The group that stands left of, or above, the other one; None if that is not clear."""
        table = _table()
        places = [n for n, word in enumerate(self.sequence) if word in table.axes]
        if len(self.groups) != 2 or not places:
            return None
        (_, one), (second, other) = self.groups
        before = [self.sequence[place] in table.before for place in places]
        num_early = sum(place < second for place in places)
        if len({*before}) == 2:  # "a cow on the left, a laptop on the right"
            is_each = len(places) == 2 and num_early == 1
            return (one if before[0] else other) if is_each else None
        near = [*self.sequence[max(places[0] - 1, 0) : places[0]]]
        near += self.sequence[places[-1] + 1 : places[-1] + 3]
        after = self.sequence[places[-1] + 1 : places[-1] + 5]
        has_pronoun = not _PRONOUNS.isdisjoint(near)
        if table.axes[self.sequence[places[-1]]] == _ACROSS and _OF.isdisjoint(after):
            has_pronoun = True  # "a cow, and to the right a laptop"
        if num_early == 0 and not has_pronoun:  # the places are at the end
            return None
        if num_early and places[0] < self.groups[0][0]:  # "left of the dog is a cat"
            return None
        subject, ground = (other, one) if has_pronoun else (one, other)
        return subject if before[0] else ground

    def contradicts(self, other: "Meaning") -> bool:
        """Returns whether a text with the words of another one says something else with them.

        It does if a group mixes parts of several things ("a blue car and a red dog" for "a red car
        and a blue dog"), or if the places are exchanged.
        """
        if len(self.groups) > 1:
            for _, group in self.groups:
                touched = [thing for thing in other.things if group & thing]
                if len(touched) > 1 and not all(thing <= group for thing in touched):
                    return True
        own, theirs = self.first, other.first
        return own is not None and theirs is not None and not own & theirs

    def _groups(self) -> Iterator[tuple[int, frozenset[str]]]:
        """Yields the groups. Attributes alone belong to the thing before: "a dog that is blue"."""
        start, found = 0, set[str]()
        for place, chunk in self._chunks():
            if found and not chunk <= self.attributes and not found <= self.attributes:
                yield start, frozenset(found)
                found = set()
            start = start if found else place
            found |= chunk
        if found:
            yield start, frozenset(found)

    def _chunks(self) -> Iterator[tuple[int, set[str]]]:
        """Yields the words between separators, and the place of their first word."""
        table = _table()
        start, found = 0, set[str]()
        for number, word in enumerate([*self.sequence, _END]):
            if word in table.separators or word in table.axes:
                if found:
                    yield start, found
                found = set()
            elif word not in table.ignored:
                start = start if found else number
                found.add(word)


def meaning_of(found: Sequence[str]) -> Meaning:
    """Returns the meaning of a text.

    Args:
        found: the text as `tokens`.
    """
    table = _table()
    sequence = table.named(found)
    words = {table.axes.get(word, word) for word in sequence}
    return Meaning(sequence, frozenset(words - table.silent))


class _Table:
    """The lists of `words.yaml`, each word in its basic form."""

    def __init__(self, lists: Mapping[str, Any]) -> None:
        try:
            import snowballstemmer
        except ImportError as error:
            message = "this needs snowballstemmer; install it: pip install 'blip3o[curate]'"
            raise UsageError(message) from error
        self._stem = snowballstemmer.stemmer("english").stemWord
        self._bases = {
            word: _SILENT + word
            for name in ("ignored", "separators")
            for word in lists[name].split()
        }
        self.silent = frozenset(self._bases.values())
        self.ignored = frozenset(self._based(lists["ignored"].split()))
        self.separators = frozenset(self._based(lists["separators"].split()))
        self._bases |= lists["irregular"]
        self._bases |= {word: str(n) for n, some in lists["numbers"].items() for word in some}
        self.before = frozenset(self._based(lists["before"].split()))
        across = set(self._based(lists["horizontal"].split()))
        self.axes = {
            word: _ACROSS if word in across else _UP
            for word in (*self.before, *self._based(lists["after"].split()))
        }
        self._names: dict[str, str] = {}
        self._phrases: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for name, others in lists["synonyms"].items():
            for one in (name, *others):
                words = [word for word in tokens(one) if word not in _ARTICLES]
                self._learn(tuple(self._based(words)), name)
        for some in self._phrases.values():
            some.sort(key=lambda phrase: -len(phrase[0]))
        self.attributes = frozenset(self.named(lists["attributes"].split()))
        self._paired = frozenset(self.named(lists["paired"].split()))

    def named(self, found: Sequence[str]) -> list[str]:
        """Returns the one name of each word, or of several words that are one name."""
        bases = self._bases
        based = [bases.get(word) or self._base(word) for word in found if word not in _ARTICLES]
        names, phrases = self._names, self._phrases
        result: list[str] = []
        number = 0
        while number < len(based):
            word, length = based[number], 1
            for phrase, name in phrases.get(word, ()):
                if tuple(based[number : number + len(phrase)]) == phrase:
                    word, length = name, len(phrase)
                    break
            else:
                word = names.get(word, word)
            result.append(word)
            number += length
        if _PAIR in result:
            is_one = not self._paired.isdisjoint(result)
            pair = f"{_SILENT}of" if is_one else "2"
            result = [pair if word == _PAIR else word for word in result]
        return result

    def _learn(self, words: tuple[str, ...], name: str) -> None:
        if (silent := self._bases.get(name, "")) in self.silent:
            name = silent
        if len(words) == 1:
            self._names[words[0]] = name
        else:
            self._phrases.setdefault(words[0], []).append((words, name))

    def _based(self, found: Iterable[str]) -> list[str]:
        return [self._bases.get(word) or self._base(word) for word in found]

    def _base(self, word: str) -> str:
        """Returns the basic form of a word, and remembers it."""
        short, quote, _ = word.partition("'")
        if times := _TIMES.fullmatch(word):
            base = times[1]
        elif quote and (
            _SILENT + short in self.ignored or word.endswith("'s")
        ):  # "there's", "a cat's"
            base = self._bases.get(short) or self._stem(short)
        elif (singular := self._bases.get(word.removesuffix("s"), "")) in self.silent:
            base = singular
        else:
            base = self._stem(word)
        if len(self._bases) < _MOST_WORDS:
            self._bases[word] = base
        return base


_MOST_WORDS = 500_000
"""Basic forms to remember; further words are reduced each time."""


@functools.cache
def _table() -> _Table:
    file = Path(__file__).with_name("words.yaml")
    return _Table(yaml.safe_load(file.read_text(encoding="utf-8")))
