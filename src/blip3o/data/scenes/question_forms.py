"""Forms of questions about scenes: what fills the gaps of their frames, and the right answer."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from blip3o.data.scenes.synonyms import named_background, named_color, named_place, named_thing
from blip3o.data.scenes.things import (
    BACKGROUNDS,
    COLORS,
    NUMBER_WORDS,
    THINGS,
    with_article,
)
from blip3o.data.scenes.types import PLACES, RELATIONS, Placed, Scene, place, relations, size_word
from blip3o.data.scenes.words import (
    PLACE_PHRASES,
    RELATION_PHRASES,
    groups,
    join,
    named_uniquely,
    noun,
    on_background,
    phrase,
    pick,
    reading_order,
)

_ABSENT_SHARE = 0.1
"""Share of questions about the color or the place of something that is not there."""
_PLACE_SHARE = 0.3
"""Share of other names of places."""
_DIGIT_SHARE = 0.3
"""Share of the numbers in questions that are digits."""
_ASKED_NUMBERS = (*NUMBER_WORDS, "five")


@dataclass(frozen=True, kw_only=True)
class Say:
    """Chooses the words of one question."""

    rng: np.random.Generator
    is_plain: bool
    """Whether to use only the first names of things, colors, numbers and relations, and to ask only
    about what is there."""

    def chance(self, share: float) -> bool:
        """Returns true with a probability; false for plain words."""
        return not self.is_plain and bool(self.rng.random() < share)

    def even(self) -> bool:
        """Returns true or false, both equally likely."""
        return bool(self.rng.random() < 0.5)

    def color(self, color: str) -> str:
        """Returns a name of a color."""
        return color if self.is_plain else named_color(color, self.rng)

    def noun(self, thing: str, color: str | None = None, count: int = 1) -> str:
        """Returns a name of a thing, with the name of its color: "navy kittens"."""
        if self.is_plain:
            return noun(thing, color, count)
        name = named_thing(thing, self.rng, count)
        return f"{self.color(color)} {name}" if color else name

    def name(self, scene: Scene, one: Placed, count: int = 1) -> str:
        """Returns the shortest unique name of an object: "cat", or "red cat" among cats."""
        alone = len({other.color for other in scene.objects if other.thing == one.thing}) == 1
        return self.noun(one.thing, None if alone else one.color, count)

    def place(self, name: str) -> str:
        """Returns a name of a place after "the": "left", "upper left", "middle"."""
        if self.is_plain or self.rng.random() >= _PLACE_SHARE:
            return name
        if name == "center":
            return pick(self.rng, ("middle", "centre"))
        return named_place(name, self.rng) if " " in name else name

    def where(self, name: str) -> str:
        """Returns words for a place: "on the left", "in the upper left corner"."""
        if self.is_plain or self.rng.random() >= _PLACE_SHARE:
            return PLACE_PHRASES[name]
        if name == "center":
            return f"in the {self.place(name)}"
        if name in ("left", "right"):
            return f"on the {name} side"
        return f"in the {named_place(name, self.rng)} corner" if " " in name else f"at the {name}"

    def relation(self, relation: str) -> str:
        """Returns words for a relation: "to the left of"."""
        phrases = RELATION_PHRASES[relation]
        return phrases[0] if self.is_plain else pick(self.rng, phrases)

    def number(self, number: int) -> str:
        """Returns a number as a word or as a digit."""
        return str(number) if self.chance(_DIGIT_SHARE) else _ASKED_NUMBERS[number]


Filled = tuple[dict[str, str], str]
"""Words for the gaps of a frame, and the answer."""
Maker = Callable[[Scene, Say], Filled | None]
"""Fills the gaps for a scene; None if the scene has no such question with one right answer."""


def number_answer(number: int) -> str:
    """Returns the answer to a question for a number: "none", "one", ..."""
    return NUMBER_WORDS[number] if number else "none"


def list_answer(scene: Scene) -> str:
    """Returns the things of a scene in reading order: "a red cat and two blue dogs"."""
    return join([phrase(group) for group in groups(scene)])


def description(scene: Scene) -> str:
    """Returns the canonical description as a sentence.

    For example "A large red cat is on the left and a small blue car is on the right, on a light
    blue background."
    """
    facts = [
        f"a {size_word(one)} {noun(one.thing, one.color)} is {PLACE_PHRASES[place(one)]}"
        for one in reading_order(scene.objects)
    ]
    words = f"{join(facts)}, {on_background(scene.background)}."
    return words[0].upper() + words[1:]


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def _absent_thing(scene: Scene, say: Say) -> str:
    there = {one.thing for one in scene.objects}
    return pick(say.rng, tuple(thing for thing in THINGS if thing not in there))


def _other(say: Say, options: Sequence[str], *without: str) -> str:
    return pick(say.rng, tuple(option for option in options if option not in without))


def _far_places(objects: Sequence[Placed]) -> tuple[str, ...]:
    """Returns the places that are clearly not those of some objects.

    A thing at the top left is arguably also at the top and on the left.
    """
    here = [place(one) for one in objects]
    return tuple(p for p in PLACES if not any(p in one or one in p for one in here))


def _alone(scene: Scene, say: Say) -> Placed | None:
    """Returns an object with a unique name."""
    named = named_uniquely(scene)
    return pick(say.rng, named)[0] if named else None


def _named(name: str) -> dict[str, str]:
    return {"name": name, "a_name": with_article(name)}


def _single(scene: Scene, say: Say) -> Placed | None:
    """Returns an object whose thing occurs once."""
    things = Counter(one.thing for one in scene.objects)
    alone = [one for one in scene.objects if things[one.thing] == 1]
    return pick(say.rng, alone) if alone else None


def _what_at(scene: Scene, say: Say) -> Filled | None:
    empty = _far_places(scene.objects)
    if empty and say.chance(_ABSENT_SHARE):
        return {"where": say.where(pick(say.rng, empty))}, "nothing"
    places = Counter(place(one) for one in scene.objects)
    one = pick(say.rng, [one for one in scene.objects if places[place(one)] == 1])
    return {"where": say.where(place(one))}, with_article(noun(one.thing, one.color))


def _color_at(scene: Scene, say: Say) -> Filled | None:
    places = Counter(place(one) for one in scene.objects)
    one = pick(say.rng, [one for one in scene.objects if places[place(one)] == 1])
    return {"where": say.where(place(one))}, one.color


def _what_colored(scene: Scene, say: Say) -> Filled | None:
    colors = Counter(one.color for one in scene.objects)
    alone = [one for one in scene.objects if colors[one.color] == 1]
    if not alone:
        return None
    one = pick(say.rng, alone)
    return {"color": say.color(one.color)}, with_article(one.thing)


def _color_of(scene: Scene, say: Say) -> Filled | None:
    if say.chance(_ABSENT_SHARE):
        thing = _absent_thing(scene, say)
        return _named(say.noun(thing)), f"there is no {thing}"
    one = _single(scene, say)
    return None if one is None else (_named(say.noun(one.thing)), one.color)


def _colors_of(scene: Scene, say: Say) -> Filled | None:
    counts = Counter(one.thing for one in scene.objects)
    many = [
        one
        for one in scene.objects
        if counts[one.thing] > 1
        and {other.color for other in scene.objects if other.thing == one.thing} == {one.color}
    ]
    if not many:
        return None
    one = pick(say.rng, many)
    return {"names": say.noun(one.thing, None, counts[one.thing])}, one.color


def _count_all(scene: Scene, say: Say) -> Filled | None:
    del say
    return {}, number_answer(len(scene.objects))


def _count_color(scene: Scene, say: Say) -> Filled | None:
    color = pick(say.rng, scene.objects).color
    if say.chance(_ABSENT_SHARE):
        color = pick(say.rng, COLORS)
    number = sum(one.color == color for one in scene.objects)
    return {"color": say.color(color)}, number_answer(number)


def _count_things(scene: Scene, say: Say) -> Filled | None:
    one = pick(say.rng, scene.objects)
    if say.rng.random() < 0.3:
        return {"things": say.noun(_absent_thing(scene, say), None, 2)}, number_answer(0)
    if say.chance(0.25):
        color = one.color if say.even() else pick(say.rng, COLORS)
        number = sum((o.thing, o.color) == (one.thing, color) for o in scene.objects)
        return {"things": say.noun(one.thing, color, 2)}, number_answer(number)
    number = sum(o.thing == one.thing for o in scene.objects)
    return {"things": say.noun(one.thing, None, 2)}, number_answer(number)


def _where(scene: Scene, say: Say) -> Filled | None:
    if say.chance(_ABSENT_SHARE):
        thing, color = _absent_thing(scene, say), None
        if say.even():  # the thing is there, but not in this color
            thing = pick(say.rng, scene.objects).thing
            colors = {one.color for one in scene.objects if one.thing == thing}
            color = _other(say, COLORS, *colors)
        return _named(say.noun(thing, color)), f"there is no {noun(thing, color)}"
    one = _alone(scene, say)
    if one is None:
        return None
    return _named(say.name(scene, one)), PLACE_PHRASES[place(one)]


def _exists(scene: Scene, say: Say) -> Filled | None:
    yes = say.even()
    one = pick(say.rng, scene.objects)
    thing: str
    color: str | None
    if say.even():
        thing, color = (one.thing if yes else _absent_thing(scene, say)), None
    else:
        thing, color = one.thing, one.color
        looks = {(o.thing, o.color) for o in scene.objects}
        if not yes and say.even():  # a near miss: either the thing or the color is right
            color = pick(say.rng, tuple(c for c in COLORS if (thing, c) not in looks))
        elif not yes:
            thing = pick(say.rng, tuple(t for t in THINGS if (t, color) not in looks))
    return {"a": with_article(say.noun(thing, color))}, _yes(yes)


def _exist(scene: Scene, say: Say) -> Filled | None:
    counts = Counter(one.thing for one in scene.objects)
    many = tuple(thing for thing, count in counts.items() if count > 1)
    if many and say.even():
        return {"things": say.noun(pick(say.rng, many), None, 2)}, "yes"
    return {"things": say.noun(_absent_thing(scene, say), None, 2)}, "no"


def _is_color(scene: Scene, say: Say) -> Filled | None:
    yes, one = say.even(), _single(scene, say)
    if one is None:
        return None
    color = one.color if yes else _other(say, COLORS, one.color)
    return {"name": say.noun(one.thing), "color": say.color(color)}, _yes(yes)


def _is_at(scene: Scene, say: Say) -> Filled | None:
    yes, one = say.even(), _alone(scene, say)
    if one is None:
        return None
    where = place(one) if yes else pick(say.rng, _far_places([one]))
    return {"name": say.name(scene, one), "where": say.where(where)}, _yes(yes)


def _is_related(scene: Scene, say: Say) -> Filled | None:
    named = [one for one, _ in named_uniquely(scene)]
    if len(named) < 2:
        return None
    yes = say.even()
    first, second = say.rng.choice(len(named), size=2, replace=False)
    one, other = named[int(first)], named[int(second)]
    true = relations(one, other)
    relation = pick(say.rng, tuple(r for r in RELATIONS if (r in true) == yes))
    gaps = {"name": say.name(scene, one), "other": say.name(scene, other)}
    return gaps | {"relation": say.relation(relation)}, _yes(yes)


def _is_count(scene: Scene, say: Say) -> Filled | None:
    counts = Counter(one.thing for one in scene.objects)
    many = {thing: count for thing, count in counts.items() if count > 1}
    if not many and say.rng.random() < 0.8:  # else "no" would be the usual answer
        return None
    thing, true = pick(say.rng, tuple((many or counts).items()))
    # A smaller number would be true as well for some people: three cats are also two cats.
    number = true if many and say.even() else int(say.rng.integers(true + 1, 6))
    gaps = {"number": say.number(number), "things": say.noun(thing, None, 2)}
    return gaps, _yes(number == true)


def _is_background(scene: Scene, say: Say) -> Filled | None:
    yes = say.even()
    name = scene.background if yes else _other(say, BACKGROUNDS, scene.background)
    before, alone = (name, name) if say.is_plain else named_background(name, say.rng)
    return {"background": alone, "a_background": with_article(before)}, _yes(yes)


def _ordered(say: Say, true: str, other: str) -> dict[str, str]:
    first, second = (true, other) if say.even() else (other, true)
    return {"first": first, "second": second}


def _either_color(scene: Scene, say: Say) -> Filled | None:
    one = _single(scene, say)
    if one is None:
        return None
    other = _other(say, COLORS, one.color)
    options = _ordered(say, say.color(one.color), say.color(other))
    return {"name": say.noun(one.thing)} | options, one.color


def _either_place(scene: Scene, say: Say) -> Filled | None:
    one = _alone(scene, say)
    if one is None:
        return None
    other = say.where(pick(say.rng, _far_places([one])))
    options = _ordered(say, say.where(place(one)), other)
    return {"name": say.name(scene, one)} | options, PLACE_PHRASES[place(one)]


def _either_thing(scene: Scene, say: Say) -> Filled | None:
    one = _single(scene, say)
    if one is None:
        return None
    names = [with_article(say.noun(thing)) for thing in (one.thing, _absent_thing(scene, say))]
    return _ordered(say, *names), with_article(one.thing)


def _list(scene: Scene, say: Say) -> Filled | None:
    del say
    return {}, list_answer(scene)


def _related(scene: Scene, say: Say) -> Filled | None:
    """Asks which object has a relation to another, if exactly one does."""
    found: list[tuple[Placed, str, Placed]] = []
    for base, _ in named_uniquely(scene):
        for relation in RELATIONS:
            there = [o for o in scene.objects if o is not base and relation in relations(o, base)]
            if len(there) == 1:
                found.append((there[0], relation, base))
    if not found:
        return None
    one, relation, base = pick(say.rng, found)
    gaps = {"relation": say.relation(relation), "name": say.name(scene, base)}
    return gaps, with_article(noun(one.thing, one.color))


def _background(scene: Scene, say: Say) -> Filled | None:
    del say
    return {}, scene.background


def _size_of(scene: Scene, say: Say) -> Filled | None:
    one = _alone(scene, say)
    return None if one is None else (_named(say.name(scene, one)), size_word(one))


def _caption(scene: Scene, say: Say) -> Filled | None:
    del say
    return {}, f"{list_answer(scene)} {on_background(scene.background)}"


def _describe(scene: Scene, say: Say) -> Filled | None:
    del say
    return {}, description(scene)


FORMS: dict[str, dict[str, tuple[float, Maker]]] = {
    "what": {"what at": (0.6, _what_at), "what colored": (0.4, _what_colored)},
    "color": {
        "color of": (0.5, _color_of),
        "colors of": (0.3, _colors_of),
        "color at": (0.2, _color_at),
    },
    "count": {
        "count things": (0.6, _count_things),
        "count all": (0.2, _count_all),
        "count color": (0.2, _count_color),
    },
    "where": {"where": (1.0, _where)},
    "yes_no": {
        "exists": (0.3, _exists),
        "exist": (0.1, _exist),
        "is color": (0.15, _is_color),
        "is at": (0.15, _is_at),
        "is related": (0.15, _is_related),
        "is count": (0.1, _is_count),
        "is background": (0.05, _is_background),
    },
    "either": {
        "either color": (0.4, _either_color),
        "either place": (0.3, _either_place),
        "either thing": (0.3, _either_thing),
    },
    "list": {"list": (1.0, _list)},
    "relation": {"related": (1.0, _related)},
    "background": {"background": (1.0, _background)},
    "size": {"size of": (1.0, _size_of)},
    "caption": {"caption": (1.0, _caption)},
    "describe": {"describe": (1.0, _describe)},
}
"""The forms of each kind of question, each a section of frames/questions.txt, with its share."""
