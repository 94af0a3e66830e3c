"""The grammar of prompts: words a request in one of very many ways.

A request says what an image shows. The hand-written frames of `frames/prompts.txt` say how people
ask for it, and this module fills their gaps, from the noun phrase to the courtesy around it.

A gap such as {left:is|are} agrees with the number of the noun phrase {left}. Frames only say "a";
the module writes "an" where a vowel follows.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from blip3o.data.scenes.frames import Wording, frames
from blip3o.data.scenes.synonyms import (
    named_background,
    named_color,
    named_place,
    named_size,
    named_thing,
)
from blip3o.data.scenes.things import NUMBER_WORDS
from blip3o.data.scenes.words import (
    PLACE_PHRASES,
    Group,
    join,
    on_background,
    opened,
    phrase,
    pick,
    related,
    shuffled,
)

_LETTERS = "abcd"
_GAP = re.compile(r"\{(\w+)(?::([^|}]*)\|([^}]*))?\}")
_AWKWARD = re.compile(
    r"\b(please|pls|plz|thanks?|thx|also|kindly|hi|hey|hello|want|need)\b.*\b\1\b"
    r"|\b(?:just|only|exactly|precisely|nothing|alone)\b.*\b(?:just|only|exactly|precisely|nothing)\b"
    r"|\b(?:please|pls|plz|kindly)\b.*\b(?:please|pls|plz|kindly)\b"
    r"|\b(?:corner|middle|cent(?:er|re)|top|bottom|left|right|side|background|backdrop) in it\b"
    r"|\d[.):]? \d",
    re.IGNORECASE,
)
"""Words that people do not say twice, and other clumsy combinations; such a draw is repeated."""

_INVERTED = re.compile(
    r"(?:on|at|in|near|close|up|down|from|to|left|right|top|bottom|above|below|under|over)\b|\W|1[.)]"
)
"""Beginnings of noun phrases that only fit after a colon or at the beginning: "left: a cat"."""

_PLAIN_FORM_SHARE = 0.6
_SAME_FORM_SHARE = 0.7
_SHORT_SHARE = 0.1
_FILLER_SHARE = 0.07
_CLAUSE_SHARE = 0.35
_SENTENCES_SHARE = 0.15
_GREETING_SHARE = 0.1
_ENDING_SHARE = 0.15
_BARE_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class Request:
    """The content of an image that somebody asks for."""

    groups: tuple[Group, ...]
    """One to four groups of objects, at most four objects in all; an image shows only these."""
    relation: tuple[int, str, int] | None = None
    """(i, name, j): each object of groups[i] has this relation to each of groups[j]."""
    background: str | None = None
    """A name of `things.BACKGROUNDS`; None if the request leaves it open."""


def worded(request: Request, rng: np.random.Generator, wording: Wording) -> str:
    """Returns a request as a user may type it.

    Args:
        request: the meaning.
        rng: source of the random choices.
        wording: "template" for the plain sentences of `words.py`; "train" and "heldout" for
            frames that training may use, or never uses.
    """
    if wording == "template":
        return opened(rng, _plain_words(request, rng))
    while True:
        text = _Speaker(rng, wording).text(request)
        if not _AWKWARD.search(text):
            return _cased(text, rng)


def _plain_words(request: Request, rng: np.random.Generator) -> str:
    """Returns the noun phrase of the templates: "a red cat to the left of a blue car".

    Three and more groups are a list, because "a cat left of a dog and a bus" is unclear.
    """
    phrases = [plain_phrase(group) for group in request.groups]
    if request.relation and len(phrases) == 2:
        first, name, second = request.relation
        words = related(rng, phrases[first], name, phrases[second])
    else:
        words = join(phrases)
    return f"{words} {on_background(request.background)}" if request.background else words


def plain_phrase(group: Group) -> str:
    """Returns the plain noun phrase of a group with all that is known: "a small cat at the top"."""
    words = phrase(group, group.size or "")
    return f"{words} {PLACE_PHRASES[group.place]}" if group.place else words


@dataclass(frozen=True)
class _Words:
    """Words, and whether a verb after them is in the plural."""

    text: str
    is_plural: bool = False


class _Speaker:
    """Words one request; it likes to repeat its forms of numbers and colors, as people do."""

    def __init__(self, rng: np.random.Generator, wording: Wording) -> None:
        self._rng = rng
        self._wording: Wording = wording
        self._forms: dict[str, str] = {}
        self._repeats = self._happens(_SAME_FORM_SHARE)

    def text(self, request: Request) -> str:
        """Returns the whole prompt without its final case."""
        rest = ""
        if request.relation and len(request.groups) > 2 and self._happens(0.5):
            request, rest = self._without_rest(request)
        has_sentences = len(request.groups) > 1 and request.relation is None
        if has_sentences and self._happens(_SENTENCES_SHARE):
            things = self._groups(request.groups)
            text = self._fill(f"sentences {len(things)}", dict(zip(_LETTERS, things, strict=False)))
            text = self._with_background_sentence(text, request.background)
        elif self._happens(_CLAUSE_SHARE):
            text = self._wrapped("wrap clause", "clause", _Words(self._clause(request)))
            text = self._with_background_sentence(text, request.background)
        else:
            text = self._phrase_text(request)
        text = _followed(text, rest)
        if self._happens(_GREETING_SHARE):
            frame = self._frame("greeting")
            if frame.endswith(", {text}") and not re.match(r"I\b", text):
                text = text[0].lower() + text[1:]
            text = _filled(frame, {"text": _Words(text)})
        if self._happens(_ENDING_SHARE):
            before, end = self._frame("ending").split("{text}")
            text = f"{before}{_followed(text, end)}"
        return text

    def _without_rest(self, request: Request) -> tuple[Request, str]:
        """Returns the request of the two related groups, and a sentence about the others."""
        assert request.relation
        first, name, second = request.relation
        pair = (request.groups[first], request.groups[second])
        rest = self._listed([g for k, g in enumerate(request.groups) if k not in (first, second)])
        sentence = self._fill("also sentence", {"rest": rest})
        return replace(request, groups=pair, relation=(0, name, 1)), sentence

    def _phrase_text(self, request: Request) -> str:
        """Returns a text whose core is a noun phrase: "please draw a cat on a white background"."""
        is_short = self._happens(_SHORT_SHARE)
        if is_short:
            self._forms["one"] = pick(self._rng, frames("prompts", "short one", self._wording))
        if self._happens(0.3) or not request.background:
            text = self._wrapped("wrap", "scene", self._scene(request))
            return self._with_background_sentence(text, request.background)
        gaps = {"scene": self._scene(request), **self._background(request.background)}
        scene = _Words(self._fill("background", gaps), gaps["scene"].is_plural)
        return self._wrapped("wrap", "scene", scene)

    def _wrapped(self, kind: str, gap: str, words: _Words) -> str:
        if self._wording == "train" and self._happens(_BARE_SHARE):
            return words.text
        options = frames("prompts", kind, self._wording)
        if _INVERTED.match(words.text):
            options = tuple(one for one in options if re.search(rf"(?:^|[:.] ){{{gap}}}", one))
        return _filled(pick(self._rng, options), {gap: words})

    def _with_background_sentence(self, text: str, background: str | None) -> str:
        if background is None:
            return text
        return _followed(text, self._fill("background sentence", self._background(background)))

    def _background(self, name: str) -> dict[str, _Words]:
        before, alone = named_background(name, self._rng)
        return {"bg": _Words(before), "bg_is": _Words(alone)}

    def _scene(self, request: Request) -> _Words:
        """Returns the noun phrase that names all groups."""
        if request.relation:
            return self._related(request, "")
        if len(request.groups) == 1:
            return self._group(request.groups[0], is_only=True)
        things = self._groups(request.groups)
        words = self._fill(f"list {len(things)}", dict(zip(_LETTERS, things, strict=False)))
        return _Words(words, is_plural=True)

    def _clause(self, request: Request) -> str:
        if request.relation:
            return self._related(request, " clause").text
        first = request.groups[0]
        if len(request.groups) == 1 and first.place:
            words = self._group(replace(first, place=None))
            return self._fill("placed clause", {"group": words, "place": self._place(first.place)})
        return self._fill("clause", {"things": self._listed(request.groups)})

    def _related(self, request: Request, end: str) -> _Words:
        """Returns the two related groups as a phrase or a clause, and then the other groups."""
        assert request.relation
        first, name, second = request.relation
        if name in ("right of", "below"):
            first, second = second, first
        kind, gaps = {
            "left of": ("beside", ("left", "right")),
            "right of": ("beside", ("left", "right")),
            "above": ("stacked", ("upper", "lower")),
            "below": ("stacked", ("upper", "lower")),
        }[name]
        ends = [self._group(request.groups[k]) for k in (first, second)]
        text = self._fill(kind + end, dict(zip(gaps, ends, strict=True)))
        others = [g for k, g in enumerate(request.groups) if k not in (first, second)]
        if others:
            text = self._fill("also", {"text": _Words(text), "rest": self._listed(others)})
        return _Words(text, is_plural=True)

    def _listed(self, groups: Sequence[Group]) -> _Words:
        things = self._groups(groups)
        # "There is a cat and two dogs": the verb agrees with the first thing.
        return _Words(join([one.text for one in things]), things[0].is_plural)

    def _groups(self, groups: Sequence[Group]) -> list[_Words]:
        return [self._group(group) for group in shuffled(self._rng, groups)]

    def _group(self, group: Group, *, is_only: bool = False) -> _Words:
        """Returns the noun phrase of a group; some forms only fit if it is the only one."""
        if group.place:
            words = self._group(replace(group, place=None))
            gaps = {"group": words, "place": self._place(group.place)}
            frame = self._frame("placed") if is_only else frames("prompts", "placed", "template")[0]
            return _Words(_filled(frame, gaps), words.is_plural)
        noun = self._noun(group, is_only=is_only)
        only = "only " if is_only and self._happens(0.2) else ""
        if group.count == 1:
            return _Words(_filled(self._form(only + "one"), {"noun": noun}))
        kind = only + "some"
        if self._happens(0.15):
            kind = NUMBER_WORDS[group.count]
        gaps = {
            "noun": noun,
            "number": _Words(NUMBER_WORDS[group.count]),
            "digit": _Words(str(group.count)),
        }
        words = _filled(self._form(kind), gaps)
        return _Words(words, is_plural=not words.startswith("a "))

    def _noun(self, group: Group, *, is_only: bool) -> _Words:
        """Returns the noun with its adjectives, without article or number."""
        words = named_thing(group.thing, self._rng, group.count)
        is_plural = group.count > 1
        if group.color:
            gaps = {
                "thing": _Words(words, is_plural),
                "color": _Words(named_color(group.color, self._rng)),
            }
            only = "only " if is_only and self._happens(0.15) else ""
            words = _filled(self._form(only + "color"), gaps)
        if group.size:
            words = f"{named_size(group.size, self._rng)} {words}"
        if self._happens(_FILLER_SHARE):
            words = self._fill("filler", {"noun": _Words(words)})
        return _Words(words, is_plural)

    def _place(self, place: str) -> _Words:
        row, _, column = place.rpartition(" ")
        if row:
            return _Words(self._fill("corner", {"corner": _Words(named_place(place, self._rng))}))
        if column in ("left", "right"):
            return _Words(self._fill("side", {"side": _Words(column)}))
        return _Words(self._fill(column, {}))

    def _form(self, kind: str) -> str:
        """Returns a frame of a noun; the plain one is frequent, and a speaker may repeat it."""
        if kind in self._forms:
            return self._forms[kind]
        is_plain = self._happens(_PLAIN_FORM_SHARE)
        form = pick(self._rng, frames("prompts", kind, "template" if is_plain else self._wording))
        if self._repeats:
            self._forms[kind] = form
        return form

    def _frame(self, kind: str) -> str:
        return pick(self._rng, frames("prompts", kind, self._wording))

    def _fill(self, kind: str, gaps: Mapping[str, _Words]) -> str:
        return _filled(self._frame(kind), gaps)

    def _happens(self, share: float) -> bool:
        return bool(self._rng.random() < share)


def _filled(frame: str, gaps: Mapping[str, _Words]) -> str:
    def words(match: re.Match[str]) -> str:
        name, singular, plural = match.groups()
        if singular is None:
            return gaps[name].text
        return plural if gaps[name].is_plural else singular

    return _GAP.sub(words, frame)


def _followed(text: str, end: str) -> str:
    """Returns a text with a sentence or an ending after it, and a period between two sentences."""
    if not end:
        return text
    end = end.strip()
    if end[0].isupper():
        return f"{text}{'' if text[-1] in '.!?' else '.'} {end}"
    if end[0] in ",!":
        return text.rstrip(".!?") + end
    return f"{text} {end}"


def _cased(text: str, rng: np.random.Generator) -> str:
    """Returns the text with "an" before vowels, and with the capitals and period of a typist."""
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    if text[-1].isalnum() and rng.random() < 0.4:
        text += "."
    roll = rng.random()
    if roll < 0.03:
        return text.upper()
    if roll < 0.4:
        return text.lower()
    return re.sub(r"(^|[.!?] )([a-z])", lambda match: match[1] + match[2].upper(), text)
