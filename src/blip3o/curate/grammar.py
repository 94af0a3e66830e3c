"""Sentences from word lists and templates: a grammar in a YAML file.

    words:
      animal: [dog, {word: ox, many: oxen}]
      count: [{word: two, number: 2}, {word: three, number: 3}]
      place: [on a beach, "next to {a animal}"]
    categories:
      counting:
        - a photo of {count} {animal.many} {place}
        - text: "{count} {animal.many}"
          facts: {include: [{class: "{animal}", count: "{count.number}"}]}
          weight: 2

A gap `{animal}` is replaced by a random entry of the list `animal`, and equal gaps of a template by
the same one. `{animal:1}` and `{animal:2}` are different entries. `{animal.many}` is the plural,
and `{a animal}`, the same as `{animal.a}`, has the article "a" or "an". An entry states irregular
forms itself, and any others: with `{word: Louvre, city: Paris}`, a template can say
`{landmark} in {landmark.city}`. An entry that lacks a form uses its word. Entries may have gaps
too; these are drawn anew for each entry. `{words_of: animal}` in a list stands for all entries of
another list.

A template may have a `source`, the prompt of the image that the text, an instruction, edits, and
`facts`, which the image must show. A whole number without quotes stays a number there. A text
that ends as a sentence also begins as one, with a capital letter.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blip3o.core.config import read_yaml
from blip3o.core.errors import UsageError, shown, unknown_name
from blip3o.core.scalars import Text
from blip3o.curate.phrases import ARTICLE, MANY, WORD, Entry, Gap, Pattern, Words, draw, spoken

_BRACES = re.compile(r"\{([^{}]*)\}")
_GAP = re.compile(r"(a )?(\w+)(?::(\w+))?(?:\.(\w+))?")
_WEIGHT = "weight"
_BUNDLED = Path(__file__).with_name("grammars")


@dataclass(frozen=True)
class _Template:
    text: Pattern
    source: Pattern
    facts: Any
    weight: float
    line: str


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A filled template.

    Args:
        text: the prompt, or the instruction of an edit.
        source: the prompt of the image to edit; empty if the template has none.
        facts: what the image must show; empty if the template has none.
        template: the text of the template, for the history.
    """

    text: str
    source: str
    facts: Mapping[str, Any]
    template: str


class Grammar:
    """Word lists, and templates by category.

    Args:
        data: the contents of a file, as `read_yaml` gives them.
        name: name of the file, for messages.

    Raises:
        UsageError: if it is not such a grammar; the message names the key.
    """

    def __init__(self, data: object, name: str) -> None:
        self._name = name
        top = self._mapping(data, "the file", ("words", "categories"))
        raw = self._mapping(top.get("words", {}), "words")
        included = {key: self._included(raw, key, ()) for key in raw}
        self._words = {
            key: [
                self._entry(one, f"words.{key}, entry {number}")
                for number, one in enumerate(some, start=1)
            ]
            for key, some in included.items()
        }
        self._forms = {
            key: {form for entry in some for form in entry.forms} | {ARTICLE, MANY}
            for key, some in self._words.items()
        }
        for key, some in self._words.items():
            for entry in some:
                self._check(entry.forms.values(), f"words.{key}")
        for key in self._words:
            self._check_cycle(key, ())
        self._templates = {
            key: self._category(some, f"categories.{key}")
            for key, some in self._mapping(top.get("categories", {}), "categories").items()
        }
        if not self._templates:
            raise self._fault("categories", "there is none")

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories."""
        return tuple(self._templates)

    def sentence(self, category: str, rng: np.random.Generator) -> Sentence:
        """Returns a random sentence of a category.

        Raises:
            UsageError: if there is no such category.
        """
        templates = self._of(category)
        template = templates[draw([one.weight for one in templates], rng)]
        words = Words(self._words, rng)
        source = spoken(words.text(template.source))
        return Sentence(
            source=source,
            text=spoken(words.text(template.text)),
            facts=words.facts(template.facts),
            template=template.line,
        )

    def num_expected(self, category: str, num_drafts: int) -> float:
        """Returns how many different sentences some drafts of a category are expected to have.

        All entries of a list count as equally likely; uneven weights give slightly less.

        Raises:
            UsageError: if there is no such category.
        """
        templates = self._of(category)
        total = sum(one.weight for one in templates)
        expected = 0.0
        for one in templates:
            size, draws = self._size((one.source, one.text)), num_drafts * one.weight / total
            missed = draws * math.log1p(-1 / size) if size > 1 else -math.inf
            expected += -size * math.expm1(missed) if draws else 0.0
        return expected

    def _of(self, category: str) -> Sequence[_Template]:
        if category not in self._templates:
            known = self._templates
            raise unknown_name(f"category of the grammar {self._name}", category, known)
        return self._templates[category]

    def _size(self, patterns: Sequence[Pattern]) -> int:
        """Returns in how many ways texts can be filled together."""
        labels: dict[str, set[str]] = {}
        for gap in _gaps(patterns):
            labels.setdefault(gap.words, set()).add(gap.label)
        return math.prod(self._ways(words, len(some)) for words, some in labels.items())

    @functools.cache  # noqa: B019 - a grammar lives as long as the process
    def _ways(self, words: str, count: int) -> int:
        """Returns the number of ordered choices of some different entries of a list."""
        ways = [1, *[0] * count]
        for entry in self._words[words]:
            size = self._size((entry.forms[WORD],))
            for number in range(count, 0, -1):
                ways[number] += ways[number - 1] * size
        return ways[count] * math.factorial(count)

    # -- reading --

    def _fault(self, place: str, fault: str) -> UsageError:
        return UsageError(f"the grammar {self._name}: {place}: {fault}")

    def _mapping(
        self, data: object, place: str, known: Sequence[str] | None = None
    ) -> Mapping[str, Any]:
        if not isinstance(data, Mapping):
            raise self._fault(place, f"it must be a mapping, got {shown(data)}")
        for key in data:
            if known is not None and key not in known:
                raise self._fault(place, str(unknown_name("key", key, known)))
        return data

    def _list(self, data: object, place: str) -> Sequence[Any]:
        if not isinstance(data, list) or not data:
            what = "the list is empty" if data == [] else f"it must be a list, got {shown(data)}"
            raise self._fault(place, what)
        return data

    def _included(self, raw: Mapping[str, Any], key: str, outer: tuple[str, ...]) -> list[Any]:
        """Returns the entries of a list, with those of the lists that it includes."""
        if key in outer:
            raise self._fault(f"words.{key}", "the list includes itself")
        found: list[Any] = []
        for one in self._list(raw[key], f"words.{key}"):
            if not (isinstance(one, Mapping) and "words_of" in one):
                found.append(one)
                continue
            other = self._text(self._mapping(one, f"words.{key}", ("words_of",))["words_of"], key)
            if other not in raw:
                raise self._fault(f"words.{key}", str(unknown_name("list of words", other, raw)))
            found += self._included(raw, other, (*outer, key))
        return found

    def _text(self, data: object, place: str) -> str:
        if not isinstance(data, Text) or data.is_null:
            raise self._fault(place, f"it must be a text, got {shown(data)}; quote a text with {{")
        return data.text.strip()

    def _entry(self, data: object, place: str) -> Entry:
        forms = data if isinstance(data, Mapping) else {WORD: data}
        if WORD not in forms:
            raise self._fault(place, f"an entry has no 'word': {shown(dict(forms))}")
        patterns = {
            form: self._pattern(text, place) for form, text in forms.items() if form != _WEIGHT
        }
        return Entry(patterns, self._weight(forms, place))

    def _category(self, data: object, place: str) -> list[_Template]:
        some = self._list(data, place)
        return [
            self._template(one, f"{place}, template {number}")
            for number, one in enumerate(some, start=1)
        ]

    def _template(self, data: object, place: str) -> _Template:
        given = self._mapping(
            data if isinstance(data, Mapping) else {"text": data},
            place,
            ("text", "source", "facts", _WEIGHT),
        )
        text = self._pattern(given.get("text"), place)
        source = self._pattern(given["source"], place) if "source" in given else ()
        facts = self._facts(given.get("facts", {}), place)
        named = {(gap.words, gap.label) for gap in _gaps((text, source))}
        for gap in _gaps(_patterns_in(facts)):
            if (gap.words, gap.label) not in named:
                raise self._fault(place, f"the facts name {gap.words}, but no text does")
        self._check((text, source, *_patterns_in(facts)), place)
        line = str(given["text"].text)
        return _Template(text, source, facts, self._weight(given, place), line)

    def _facts(self, data: object, place: str) -> Any:  # noqa: ANN401 - any JSON
        if isinstance(data, Mapping):
            return {key: self._facts(one, place) for key, one in data.items()}
        if isinstance(data, list):
            return [self._facts(one, place) for one in data]
        return self._pattern(data, place)

    def _weight(self, data: Mapping[str, Any], place: str) -> float:
        given = data.get(_WEIGHT, Text("1"))
        weight = given.real() if isinstance(given, Text) else None
        if weight is None or not 0 < weight < math.inf:
            raise self._fault(place, f"weight must be a number above 0, got {shown(given)}")
        return weight

    def _pattern(self, data: object, place: str) -> Pattern:
        text = self._text(data, place)
        if isinstance(data, Text) and (number := data.whole()) is not None:
            return (number,)
        parts: list[str | int | Gap] = []
        for number, part in enumerate(_BRACES.split(text)):
            if number % 2 == 0:
                if "{" in part or "}" in part:
                    raise self._fault(place, f"a brace has no partner in {shown(text)}")
                parts += [part] if part else []
                continue
            if not (found := _GAP.fullmatch(part)):
                raise self._fault(place, f"{{{part}}} is not a gap like {{animal}} or {{a animal}}")
            article, words, label, form = found.groups(default="")
            parts.append(Gap(words, label, form or (ARTICLE if article else WORD)))
        return tuple(parts)

    def _check(self, patterns: Sequence[Pattern] | Any, place: str) -> None:  # noqa: ANN401
        """Checks that all gaps have a list, that it has enough entries, and their form."""
        labels: dict[str, set[str]] = {}
        for gap in _gaps(patterns):
            if gap.words not in self._words:
                raise self._fault(place, str(unknown_name("gap", gap.words, self._words)))
            if gap.form not in self._forms[gap.words]:
                fault = unknown_name(f"form of {gap.words}", gap.form, self._forms[gap.words])
                raise self._fault(place, str(fault))
            labels.setdefault(gap.words, set()).add(gap.label)
        for words, some in labels.items():
            if len(some) > len(self._words[words]):
                fault = f"{len(some)} different {words} are needed, but the list has "
                raise self._fault(place, f"{fault}{len(self._words[words])}")

    def _check_cycle(self, key: str, outer: tuple[str, ...]) -> None:
        if key in outer:
            raise self._fault(f"words.{key}", "its gaps lead back to itself")
        inner = {gap.words for one in self._words[key] for gap in _gaps(one.forms.values())}
        for name in inner:
            self._check_cycle(name, (*outer, key))


@functools.cache
def read_grammar(name: str) -> Grammar:
    """Returns a grammar, which each process reads once.

    Args:
        name: name of a bundled grammar, or a file that ends in .yaml or .yml.

    Raises:
        UsageError: if there is none, or it is not valid.
    """
    return Grammar(read_yaml(grammar_file(name)), name)


def grammar_file(name: str) -> Path:
    """Returns the file of a grammar; see `read_grammar`."""
    if name.lower().endswith((".yaml", ".yml")):
        return Path(name).expanduser()
    bundled = {file.stem: file for file in _BUNDLED.glob("*.yaml")}
    if name not in bundled:
        fault = unknown_name("grammar", name, bundled)
        raise UsageError(f"{fault}; the name of your own file ends in .yaml")
    return bundled[name]


def _gaps(patterns: Sequence[Pattern] | Any) -> Iterator[Gap]:  # noqa: ANN401
    return (part for pattern in patterns for part in pattern if isinstance(part, Gap))


def _patterns_in(facts: Any) -> list[Pattern]:  # noqa: ANN401 - any JSON
    if isinstance(facts, Mapping):
        return [found for one in facts.values() for found in _patterns_in(one)]
    if isinstance(facts, list):
        return [found for one in facts for found in _patterns_in(one)]
    return [facts]
