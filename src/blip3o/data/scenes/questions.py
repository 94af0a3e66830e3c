"""Questions about scenes with short answers that are certain."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from blip3o.data.scenes.captions import detailed_caption
from blip3o.data.scenes.phrasing import pick
from blip3o.data.scenes.things import COLORS, NUMBER_WORDS, THINGS, plural, with_article
from blip3o.data.scenes.types import (
    PLACES,
    RELATIONS,
    Placed,
    Scene,
    place,
    relations,
)
from blip3o.data.scenes.words import PLACE_PHRASES, Group, groups, join, noun, phrase

DESCRIBE = (
    "Describe the image in detail.",
    "Describe this image in detail.",
    "Please describe the image in detail.",
    "What does the image show in detail?",
)
"""Requests for the detailed caption."""


@dataclass(frozen=True, kw_only=True)
class QA:
    """A question and its answer."""

    kind: str
    question: str
    answer: str
    learned: tuple[tuple[int, int], ...] | None = None
    """(start, stop) of the parts of the answer that are worth learning; None for all of it."""


def questions(
    scene: Scene, rng: np.random.Generator, kinds: tuple[str, ...] | None = None
) -> list[QA]:
    """Returns one question for each kind that can be asked about a picture, in mixed order.

    Args:
        scene: what the picture shows.
        rng: where the choices come from.
        kinds: the kinds to ask, of KINDS or drills; None for all KINDS.

    """
    kinds = KINDS if kinds is None else kinds
    found = []
    for kind in [kinds[int(k)] for k in rng.permutation(len(kinds))]:
        if kind in _DRILL_MAKERS:
            drill = _DRILL_MAKERS[kind](scene, rng)
            found += [drill] if drill else []
        elif pair := _MAKERS[kind](scene, rng):
            found.append(QA(kind=kind, question=pair[0], answer=pair[1]))
    return found


def describe(scene: Scene, rng: np.random.Generator) -> QA:
    """Returns a request for the detailed caption, which is always worded the same way."""
    return QA(kind="describe", question=pick(rng, DESCRIBE), answer=detailed_caption(scene))


_Pair = tuple[str, str]


def _choose(rng: np.random.Generator, items: list[Placed]) -> Placed:
    return items[int(rng.integers(len(items)))]


def named_uniquely(scene: Scene) -> list[tuple[Placed, str]]:
    """Returns each object that a name points to, with its shortest such name.

    "cat" where there is one cat, "red cat" where only one cat is red.
    """
    things = Counter(one.thing for one in scene.objects)
    looks = Counter((one.thing, one.color) for one in scene.objects)
    return [
        (one, one.thing if things[one.thing] == 1 else noun(one.thing, one.color))
        for one in scene.objects
        if looks[one.thing, one.color] == 1
    ]


def _what(scene: Scene, rng: np.random.Generator) -> _Pair | None:
    # "what is the red thing" while one color belongs to one object, else by place.
    colors = Counter(one.color for one in scene.objects)
    alone = [one for one in scene.objects if colors[one.color] == 1]
    if alone and rng.random() < 0.4:
        one = _choose(rng, alone)
        question = pick(rng, ("What is the {} thing?", "What is {}?", "Which thing is {}?"))
        return question.format(one.color), with_article(one.thing)
    places = Counter(place(one) for one in scene.objects)
    one = _choose(rng, [one for one in scene.objects if places[place(one)] == 1])
    question = pick(rng, ("What is {}?", "What can you see {}?", "Which object is {}?"))
    return (
        question.format(PLACE_PHRASES[place(one)]),
        phrase(Group(thing=one.thing, color=one.color, count=1)),
    )


def _color(scene: Scene, rng: np.random.Generator) -> _Pair | None:
    colors: dict[str, set[str]] = {}
    for one in scene.objects:
        colors.setdefault(one.thing, set()).add(one.color)
    plain = [one for one in scene.objects if len(colors[one.thing]) == 1]
    if not plain:
        return None
    one = _choose(rng, plain)
    many = sum(other.thing == one.thing for other in scene.objects) > 1
    name, verb = (plural(one.thing), "are") if many else (one.thing, "is")
    options = (
        *(f"What color {verb} the {name}?", f"Which color {verb} the {name}?"),
        f"What is the color of the {name}?",
    )
    return pick(rng, options), one.color


_HOW_MANY = ("How many {} are there?", "How many {} are in the image?")


def _count(scene: Scene, rng: np.random.Generator) -> _Pair | None:
    roll = rng.random()
    if roll < 0.25:
        options = ("How many objects are there?", "How many things are in the image?")
        return pick(rng, options), NUMBER_WORDS[len(scene.objects)]
    one = _choose(rng, list(scene.objects))
    if roll < 0.45:
        name, number = f"{one.color} things", sum(o.color == one.color for o in scene.objects)
    elif roll < 0.6:
        name = plural(_absent(scene, rng))
        number = 0
    else:
        name, number = plural(one.thing), sum(o.thing == one.thing for o in scene.objects)
    return pick(rng, _HOW_MANY).format(name), NUMBER_WORDS[number]


def _where(scene: Scene, rng: np.random.Generator) -> _Pair | None:
    named = named_uniquely(scene)
    if not named:
        return None
    one, name = named[int(rng.integers(len(named)))]
    options = (
        f"Where is the {name}?",
        f"Where can you see the {name}?",
        f"Where do you see the {name}?",
    )
    return pick(rng, options), place(one)


def _yes_no(scene: Scene, rng: np.random.Generator) -> _Pair | None:
    yes = bool(rng.random() < 0.5)
    roll = rng.random()
    if roll < 0.35:
        question = _is_there_thing(scene, rng, yes)
    elif roll < 0.65:
        question = _is_there_look(scene, rng, yes)
    else:
        question = _is_it(scene, rng, yes)
    return (question, "yes" if yes else "no") if question else None


def _is_there_thing(scene: Scene, rng: np.random.Generator, yes: bool) -> str:
    there = {one.thing for one in scene.objects}
    thing = pick(rng, tuple(name for name in THINGS if (name in there) == yes))
    question = pick(rng, ("Is there {}?", "Is there {} in the image?", "Can you see {}?"))
    return question.format(with_article(thing))


def _is_there_look(scene: Scene, rng: np.random.Generator, yes: bool) -> str:
    looks = {(one.thing, one.color) for one in scene.objects}
    one = _choose(rng, list(scene.objects))
    thing, color = one.thing, one.color
    if not yes:  # near misses: one of the two is right
        if rng.random() < 0.5:
            color = pick(rng, tuple(c for c in COLORS if (thing, c) not in looks))
        else:
            thing = pick(rng, tuple(t for t in THINGS if (t, color) not in looks))
    question = pick(rng, ("Is there {}?", "Is there {} in the image?", "Can you see {}?"))
    return question.format(with_article(noun(thing, color)))


def _is_it(scene: Scene, rng: np.random.Generator, yes: bool) -> str | None:
    """Asks for the color, place or relation of an object with a name of its own."""
    named = [pair for pair in named_uniquely(scene) if pair[1] == pair[0].thing]
    if not named:
        return None
    order = [named[int(k)] for k in rng.permutation(len(named))]
    one, name = order[0]
    roll = rng.random()
    if len(order) > 1 and roll < 0.5:
        true = relations(one, order[1][0])
        options = tuple(r for r in RELATIONS if (r in true) == yes)
        relation = pick(rng, options)
        return f"Is the {name} {WORDED.get(relation, relation)} the {order[1][1]}?"
    if roll < 0.75:
        options = tuple(c for c in COLORS if (c == one.color) == yes)
        return f"Is the {name} {pick(rng, options)}?"
    # A thing at the top left is also at the top in a way: such places are not asked about.
    here = place(one)
    alike = {p for p in PLACES if p in here or here in p}
    options = (here,) if yes else tuple(p for p in PLACES if p not in alike)
    return f"Is the {name} {PLACE_PHRASES[pick(rng, options)]}?"


WORDED = {"left of": "to the left of", "right of": "to the right of"}


def _list(scene: Scene, rng: np.random.Generator) -> _Pair | None:
    options = (
        *("What is in the image?", "What objects are there?", "What can you see?"),
        *("List the objects.", "Which objects are in the image?"),
    )
    return pick(rng, options), join([phrase(group) for group in groups(scene)])


def _relation(scene: Scene, rng: np.random.Generator) -> _Pair | None:
    """Asks what stands in a relation to an object, where exactly one object does."""
    found = []
    for base, name in named_uniquely(scene):
        for relation in RELATIONS:
            there = [o for o in scene.objects if o is not base and relation in relations(o, base)]
            if len(there) == 1:
                found.append((there[0], relation, name))
    if not found:
        return None
    one, relation, name = found[int(rng.integers(len(found)))]
    question = pick(rng, ("What is {} the {}?", "What can you see {} the {}?"))
    answer = phrase(Group(thing=one.thing, color=one.color, count=1))
    return question.format(WORDED.get(relation, relation), name), answer


def _background(scene: Scene, rng: np.random.Generator) -> _Pair | None:
    options = (
        *("What is the background?", "What kind of background is there?"),
        *("What background does the image have?", "How does the background look?"),
    )
    return pick(rng, options), scene.background


def _is_there(scene: Scene, rng: np.random.Generator) -> QA:
    yes = bool(rng.random() < 0.5)
    ask = _is_there_thing if rng.random() < 0.5 else _is_there_look
    return QA(kind="is_there", question=ask(scene, rng, yes), answer="yes" if yes else "no")


def _how_many(scene: Scene, rng: np.random.Generator) -> QA:
    """Asks for the number of one thing, which half the time is zero.

    As seldom as `_count` asks for zero, the name is not looked for: the picture's number is told.
    """
    there = Counter(one.thing for one in scene.objects)
    is_there = bool(rng.random() < 0.5)
    thing = _choose(rng, list(scene.objects)).thing if is_there else _absent(scene, rng)
    question = pick(rng, _HOW_MANY).format(plural(thing))
    return QA(kind="how_many", question=question, answer=NUMBER_WORDS[there[thing]])


def _colors_of(scene: Scene, rng: np.random.Generator) -> QA | None:
    """Asks for the colors of several things at once, perhaps of one that is not there.

    In the answer each fact follows its name, so that the name's own token has to find the thing:
    one step of attention, which is learned in 150 steps. "What color is the cat?" needs two (find
    it; carry it to the end of the question) and is not learned without. The names are not learned:
    they only repeat the question, and their loss hides that of the facts.
    """
    facts = [(f"the {one.thing}", one.color) for one in _alone(scene)]
    question = pick(rng, ("What color are {}?", "Which color are {}?", "What is the color of {}?"))
    absent = f"the {_absent(scene, rng)}", "none"
    return _drill("colors_of", question, facts, absent, rng)


def _places_of(scene: Scene, rng: np.random.Generator) -> QA | None:
    facts = [(f"the {one.thing}", place(one)) for one in _alone(scene)]
    question = pick(rng, ("Where are {}?", "Where can you see {}?", "Where do you see {}?"))
    absent = f"the {_absent(scene, rng)}", "none"
    return _drill("places_of", question, facts, absent, rng)


def _are_there(scene: Scene, rng: np.random.Generator) -> QA | None:
    facts = []
    for one in _alone(scene):
        roll = rng.random()
        wrong = tuple(color for color in COLORS if color != one.color)
        color = None if roll < 1 / 3 else one.color if roll < 2 / 3 else pick(rng, wrong)
        is_right = color in (None, one.color)
        facts.append((with_article(noun(one.thing, color)), "yes" if is_right else "no"))
    question = pick(rng, ("Is there {}?", "Is there {} in the image?", "Can you see {}?"))
    absent = with_article(_absent(scene, rng)), "no"
    return _drill("are_there", question, facts, absent, rng)


def _counts_of(scene: Scene, rng: np.random.Generator) -> QA | None:
    """Asks how many there are of several things and of a color at once."""
    things = Counter(one.thing for one in scene.objects)
    facts = [(plural(thing), NUMBER_WORDS[number]) for thing, number in things.items()]
    if rng.random() < 0.5:
        color = _choose(rng, list(scene.objects)).color
        number = sum(one.color == color for one in scene.objects)
        facts.append((f"{color} things", NUMBER_WORDS[number]))
    absent = plural(_absent(scene, rng)), NUMBER_WORDS[0]
    return _drill("counts_of", pick(rng, _HOW_MANY), facts, absent, rng)


def _drill(
    kind: str,
    question: str,
    facts: list[tuple[str, str]],
    absent: tuple[str, str],
    rng: np.random.Generator,
) -> QA | None:
    """Returns one question for all facts, with or without the absent thing; None for one fact."""
    if len(facts) < 2 or rng.random() < 0.5:
        facts = [*facts, absent]
    if len(facts) < 2:
        return None
    facts = [facts[int(k)] for k in rng.permutation(len(facts))]
    names = join([name for name, _ in facts])
    answer, learned = "", []
    for name, said in facts:
        answer += f"; {name}" if answer else name
        learned.append((len(answer), len(answer) + 1 + len(said)))  # with the space before it
        answer += f" {said}"
    return QA(kind=kind, question=question.format(names), answer=answer, learned=tuple(learned))


def _alone(scene: Scene) -> list[Placed]:
    """Returns the objects whose thing is there once."""
    things = Counter(one.thing for one in scene.objects)
    return [one for one in scene.objects if things[one.thing] == 1]


def _absent(scene: Scene, rng: np.random.Generator) -> str:
    there = {one.thing for one in scene.objects}
    return pick(rng, tuple(thing for thing in THINGS if thing not in there))


_MAKERS: dict[str, Callable[[Scene, np.random.Generator], _Pair | None]] = {
    "what": _what,
    "color": _color,
    "count": _count,
    "where": _where,
    "yes_no": _yes_no,
    "list": _list,
    "relation": _relation,
    "background": _background,
}
KINDS: tuple[str, ...] = tuple(_MAKERS)
"""Kinds of questions about pictures."""
_DRILL_MAKERS: dict[str, Callable[[Scene, np.random.Generator], QA | None]] = {
    "colors_of": _colors_of,
    "places_of": _places_of,
    "are_there": _are_there,
    "counts_of": _counts_of,
    "is_there": _is_there,
    "how_many": _how_many,
}
DRILLS: tuple[str, ...] = (*_DRILL_MAKERS, "where", "color", "yes_no")
"""What training asks besides: to find a thing by its name is the skill that is learned last."""
