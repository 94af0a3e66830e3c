"""Questions about scenes with short, unambiguous answers."""

from collections import Counter
from collections.abc import Callable

import numpy as np

from blip3o.data.scenes.captions import detailed_caption
from blip3o.data.scenes.drills import (
    DRILL_MAKERS,
    HOW_MANY,
    QA,
    absent_thing,
    is_there_look,
    is_there_thing,
)
from blip3o.data.scenes.things import COLORS, NUMBER_WORDS, plural, with_article
from blip3o.data.scenes.types import PLACES, RELATIONS, Scene, place, relations
from blip3o.data.scenes.words import (
    PLACE_PHRASES,
    groups,
    join,
    named_uniquely,
    noun,
    phrase,
    pick,
    shuffled,
)

DESCRIBE = (
    "Describe the image in detail.",
    "Describe this image in detail.",
    "Please describe the image in detail.",
    "What does the image show in detail?",
)
"""Requests for the detailed caption."""


def questions(
    scene: Scene, rng: np.random.Generator, kinds: tuple[str, ...] | None = None
) -> list[QA]:
    """Returns one question of each kind that the scene allows, in random order.

    Args:
        scene: the scene of the image.
        rng: source of the random choices.
        kinds: names from KINDS or drills; None for all KINDS.
    """
    kinds = KINDS if kinds is None else kinds
    found = []
    for kind in shuffled(rng, kinds):
        if kind in DRILL_MAKERS:
            drill = DRILL_MAKERS[kind](scene, rng)
            found += [drill] if drill else []
        elif pair := _MAKERS[kind](scene, rng):
            found.append(QA(kind=kind, question=pair[0], answer=pair[1]))
    return found


def describe(scene: Scene, rng: np.random.Generator) -> QA:
    """Returns a request for the detailed caption, whose wording never varies."""
    return QA(kind="describe", question=pick(rng, DESCRIBE), answer=detailed_caption(scene))


_Pair = tuple[str, str]
"""A question and its answer."""


def _what(scene: Scene, rng: np.random.Generator) -> _Pair | None:
    # Ask by color ("What is the red thing?") if the color is unique, else by place.
    colors = Counter(one.color for one in scene.objects)
    alone = [one for one in scene.objects if colors[one.color] == 1]
    if alone and rng.random() < 0.4:
        one = pick(rng, alone)
        question = pick(rng, ("What is the {} thing?", "What is {}?", "Which thing is {}?"))
        return question.format(one.color), with_article(one.thing)
    places = Counter(place(one) for one in scene.objects)
    one = pick(rng, [one for one in scene.objects if places[place(one)] == 1])
    question = pick(rng, ("What is {}?", "What can you see {}?", "Which object is {}?"))
    return question.format(PLACE_PHRASES[place(one)]), with_article(noun(one.thing, one.color))


def _color(scene: Scene, rng: np.random.Generator) -> _Pair | None:
    colors: dict[str, set[str]] = {}
    for one in scene.objects:
        colors.setdefault(one.thing, set()).add(one.color)
    plain = [one for one in scene.objects if len(colors[one.thing]) == 1]
    if not plain:
        return None
    one = pick(rng, plain)
    many = sum(other.thing == one.thing for other in scene.objects) > 1
    name, verb = (plural(one.thing), "are") if many else (one.thing, "is")
    options = (
        *(f"What color {verb} the {name}?", f"Which color {verb} the {name}?"),
        f"What is the color of the {name}?",
    )
    return pick(rng, options), one.color


def _count(scene: Scene, rng: np.random.Generator) -> _Pair | None:
    roll = rng.random()
    if roll < 0.25:
        options = ("How many objects are there?", "How many things are in the image?")
        return pick(rng, options), NUMBER_WORDS[len(scene.objects)]
    one = pick(rng, scene.objects)
    if roll < 0.45:
        name, number = f"{one.color} things", sum(o.color == one.color for o in scene.objects)
    elif roll < 0.6:
        name = plural(absent_thing(scene, rng))
        number = 0
    else:
        name, number = plural(one.thing), sum(o.thing == one.thing for o in scene.objects)
    return pick(rng, HOW_MANY).format(name), NUMBER_WORDS[number]


def _where(scene: Scene, rng: np.random.Generator) -> _Pair | None:
    named = named_uniquely(scene)
    if not named:
        return None
    one, name = pick(rng, named)
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
        question = is_there_thing(scene, rng, yes)
    elif roll < 0.65:
        question = is_there_look(scene, rng, yes)
    else:
        question = _is_it(scene, rng, yes)
    return (question, "yes" if yes else "no") if question else None


def _is_it(scene: Scene, rng: np.random.Generator, yes: bool) -> str | None:
    """Asks for the color, place or relation of an object whose thing occurs once."""
    named = [pair for pair in named_uniquely(scene) if pair[1] == pair[0].thing]
    if not named:
        return None
    order = shuffled(rng, named)
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
    # A thing at the top left is arguably also at the top, so such places are left out.
    here = place(one)
    options = (here,) if yes else tuple(p for p in PLACES if p not in here and here not in p)
    return f"Is the {name} {PLACE_PHRASES[pick(rng, options)]}?"


WORDED = {"left of": "to the left of", "right of": "to the right of"}


def _list(scene: Scene, rng: np.random.Generator) -> _Pair | None:
    options = (
        *("What is in the image?", "What objects are there?", "What can you see?"),
        *("List the objects.", "Which objects are in the image?"),
    )
    return pick(rng, options), join([phrase(group) for group in groups(scene)])


def _relation(scene: Scene, rng: np.random.Generator) -> _Pair | None:
    """Asks which object has a relation to another, if exactly one does."""
    found = []
    for base, name in named_uniquely(scene):
        for relation in RELATIONS:
            there = [o for o in scene.objects if o is not base and relation in relations(o, base)]
            if len(there) == 1:
                found.append((there[0], relation, name))
    if not found:
        return None
    one, relation, name = pick(rng, found)
    question = pick(rng, ("What is {} the {}?", "What can you see {} the {}?"))
    answer = with_article(noun(one.thing, one.color))
    return question.format(WORDED.get(relation, relation), name), answer


def _background(scene: Scene, rng: np.random.Generator) -> _Pair | None:
    options = (
        *("What is the background?", "What kind of background is there?"),
        *("What background does the image have?", "How does the background look?"),
    )
    return pick(rng, options), scene.background


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
"""Kinds of questions about images."""
DRILLS: tuple[str, ...] = (*DRILL_MAKERS, "where", "color", "yes_no")
"""Kinds of further questions in training: drills, and the kinds that they prepare for."""
NAMES = ("what", "list", "background")
"""Kinds of questions whose answers name things or the background."""


def names(scene: Scene, rng: np.random.Generator) -> list[QA]:
    """Asks about six questions for names: of one thing, of all things, of the background.

    Drills ask in the opposite direction, from a name to the facts about it.
    """
    return [qa for _ in range(2) for qa in questions(scene, rng, NAMES)]
