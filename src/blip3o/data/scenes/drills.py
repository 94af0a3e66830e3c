"""Questions about scenes that train a model to look up a thing by its name.

A model learns this skill last, so there are many drills. In most of them the answer states several
facts, each directly after the name of its thing. `questions` uses `QA` and the helpers at the top
as well.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from blip3o.data.scenes.things import COLORS, NUMBER_WORDS, THINGS, plural, with_article
from blip3o.data.scenes.types import Placed, Scene, place
from blip3o.data.scenes.words import join, noun, pick, reading_order, shuffled

HOW_MANY = ("How many {} are there?", "How many {} are in the image?")
IS_THERE = ("Is there {}?", "Is there {} in the image?", "Can you see {}?")
COLORS_OF = ("What color are {}?", "Which color are {}?", "What is the color of {}?")


@dataclass(frozen=True, kw_only=True)
class QA:
    """A question and its answer."""

    kind: str
    question: str
    answer: str
    learned: tuple[tuple[int, int], ...] | None = None
    """(start, stop) of the parts of the answer that are learned; None for the whole answer."""


def single_objects(scene: Scene) -> list[Placed]:
    """Returns the objects whose thing occurs once."""
    things = Counter(one.thing for one in scene.objects)
    return [one for one in scene.objects if things[one.thing] == 1]


def absent_thing(scene: Scene, rng: np.random.Generator) -> str:
    """Returns a random thing that the scene does not show."""
    there = {one.thing for one in scene.objects}
    return pick(rng, tuple(thing for thing in THINGS if thing not in there))


def is_there_thing(scene: Scene, rng: np.random.Generator, yes: bool) -> str:
    """Returns a question about a thing; `yes` selects whether its right answer is yes or no."""
    there = {one.thing for one in scene.objects}
    thing = pick(rng, tuple(name for name in THINGS if (name in there) == yes))
    question = pick(rng, IS_THERE)
    return question.format(with_article(thing))


def is_there_look(scene: Scene, rng: np.random.Generator, yes: bool) -> str:
    """Returns a question about a thing in a color, with the right answer that `yes` selects."""
    looks = {(one.thing, one.color) for one in scene.objects}
    one = pick(rng, scene.objects)
    thing, color = one.thing, one.color
    if not yes:  # a near miss: either the thing or the color is right
        if rng.random() < 0.5:
            color = pick(rng, tuple(c for c in COLORS if (thing, c) not in looks))
        else:
            thing = pick(rng, tuple(t for t in THINGS if (t, color) not in looks))
    question = pick(rng, IS_THERE)
    return question.format(with_article(noun(thing, color)))


def _is_there(scene: Scene, rng: np.random.Generator) -> QA:
    """Asks whether something is there; both answers are equally likely."""
    yes = bool(rng.random() < 0.5)
    ask = is_there_thing if rng.random() < 0.5 else is_there_look
    return QA(kind="is_there", question=ask(scene, rng, yes), answer="yes" if yes else "no")


def _how_many(scene: Scene, rng: np.random.Generator) -> QA:
    """Asks for the number of one thing; half of the answers are zero.

    The kind "count" rarely asks for zero. With that kind alone, a model ignores the name and
    answers with the number of things in the image.
    """
    there = Counter(one.thing for one in scene.objects)
    is_there = bool(rng.random() < 0.5)
    thing = pick(rng, scene.objects).thing if is_there else absent_thing(scene, rng)
    question = pick(rng, HOW_MANY).format(plural(thing))
    return QA(kind="how_many", question=question, answer=NUMBER_WORDS[there[thing]])


def one_or_none(scene: Scene, rng: np.random.Generator) -> list[QA]:
    """Asks four times for the number of a thing that occurs once or not at all.

    To answer, a model must find the named thing. If it trains on these questions alone, it learns
    this suddenly, within 150 steps; among other questions it had not learned it after 360
    (docs/log.md, 2026-11-22, counting). If no thing occurs once, all answers are zero.
    """
    alone = [one.thing for one in single_objects(scene)]
    asked = []
    for _ in range(4):
        is_there = bool(alone) and bool(rng.random() < 0.5)
        thing = pick(rng, alone) if is_there else absent_thing(scene, rng)
        question = pick(rng, HOW_MANY).format(plural(thing))
        asked.append(QA(kind="one_or_none", question=question, answer=NUMBER_WORDS[is_there]))
    return asked


def look_ups(scene: Scene, rng: np.random.Generator) -> list[QA]:
    """Asks three times for the colors of things, sometimes including an absent thing.

    A model trains on these questions first and alone. Among drills of other kinds it guesses colors
    by elimination and never looks them up (docs/log.md, 2026-11-22, naming from scratch and
    bare words). If no thing occurs once,
    the question is about all things.
    """
    return [_colors_of(scene, rng) or colors_of_all(scene, rng) for _ in range(3)]


def colors_of_all(scene: Scene, rng: np.random.Generator) -> QA:
    """Asks for the colors of all things in a scene: "the cats red; the dog blue"."""
    colors: dict[str, list[str]] = {}
    for one in reading_order(scene.objects):
        colors.setdefault(one.thing, []).append(one.color)
    facts = [
        (f"the {plural(thing) if len(own) > 1 else thing}", join(list(dict.fromkeys(own))))
        for thing, own in colors.items()
    ]
    return _asked("colors_of", pick(rng, COLORS_OF), facts, rng)


def bare_look_up(pair: Scene, rng: np.random.Generator) -> tuple[str, QA]:
    """Returns " red cat blue dog" and its continuation " dog blue cat red" for two unlike things.

    Only the colors of the continuation are learned. With articles or a surrounding sentence, a
    model needs more time to learn it (docs/log.md).
    """
    listed, asked = shuffled(rng, pair.objects), shuffled(rng, pair.objects)
    words = "".join(f" {one.color} {one.thing}" for one in listed)
    return words, _facts("bare", "", [(f" {one.thing}", one.color) for one in asked], between="")


def _colors_of(scene: Scene, rng: np.random.Generator) -> QA | None:
    """Asks for the colors of several things in one question, sometimes including an absent thing.

    In the answer each fact follows its name, so the token of the name has to find the thing. This
    takes one step of attention, and a model learns it in 150 training steps. "What color is the
    cat?" takes two steps of attention (find the thing, carry the color to the end of the question),
    and a model does not learn it without this drill. The names carry no loss: they only repeat the
    question, and their loss would hide the loss of the facts.
    """
    facts = [(f"the {one.thing}", one.color) for one in single_objects(scene)]
    question = pick(rng, COLORS_OF)
    absent = f"the {absent_thing(scene, rng)}", "none"
    return _drill("colors_of", question, facts, absent, rng)


def _places_of(scene: Scene, rng: np.random.Generator) -> QA | None:
    facts = [(f"the {one.thing}", place(one)) for one in single_objects(scene)]
    question = pick(rng, ("Where are {}?", "Where can you see {}?", "Where do you see {}?"))
    absent = f"the {absent_thing(scene, rng)}", "none"
    return _drill("places_of", question, facts, absent, rng)


def _are_there(scene: Scene, rng: np.random.Generator) -> QA | None:
    facts = []
    for one in single_objects(scene):
        roll = rng.random()
        wrong = tuple(color for color in COLORS if color != one.color)
        color = None if roll < 1 / 3 else one.color if roll < 2 / 3 else pick(rng, wrong)
        is_right = color in (None, one.color)
        facts.append((with_article(noun(one.thing, color)), "yes" if is_right else "no"))
    question = pick(rng, IS_THERE)
    absent = with_article(absent_thing(scene, rng)), "no"
    return _drill("are_there", question, facts, absent, rng)


def _counts_of(scene: Scene, rng: np.random.Generator) -> QA | None:
    """Asks for the numbers of several things, and sometimes of a color, in one question."""
    things = Counter(one.thing for one in scene.objects)
    facts = [(plural(thing), NUMBER_WORDS[number]) for thing, number in things.items()]
    if rng.random() < 0.5:
        color = pick(rng, scene.objects).color
        number = sum(one.color == color for one in scene.objects)
        facts.append((f"{color} things", NUMBER_WORDS[number]))
    absent = plural(absent_thing(scene, rng)), NUMBER_WORDS[0]
    return _drill("counts_of", pick(rng, HOW_MANY), facts, absent, rng)


def _drill(
    kind: str,
    question: str,
    facts: list[tuple[str, str]],
    absent: tuple[str, str],
    rng: np.random.Generator,
) -> QA | None:
    """Returns one question about all facts, with or without the absent thing; None for one fact."""
    if len(facts) < 2 or rng.random() < 0.5:
        facts = [*facts, absent]
    if len(facts) < 2:
        return None
    return _asked(kind, question, facts, rng)


def _asked(kind: str, question: str, facts: list[tuple[str, str]], rng: np.random.Generator) -> QA:
    """Returns one question about all facts, in random order."""
    facts = shuffled(rng, facts)
    return _facts(kind, question.format(join([name for name, _ in facts])), facts)


def _facts(kind: str, question: str, facts: list[tuple[str, str]], between: str = "; ") -> QA:
    """Returns a question whose answer states each fact after its name; only facts are learned."""
    answer, learned = "", []
    for name, fact in facts:
        answer += f"{between}{name}" if answer else name
        learned.append((len(answer), len(answer) + 1 + len(fact)))  # with the space before it
        answer += f" {fact}"
    return QA(kind=kind, question=question, answer=answer, learned=tuple(learned))


DRILL_MAKERS: dict[str, Callable[[Scene, np.random.Generator], QA | None]] = {
    "colors_of": _colors_of,
    "places_of": _places_of,
    "are_there": _are_there,
    "counts_of": _counts_of,
    "is_there": _is_there,
    "how_many": _how_many,
}
"""Makers of the drills; each returns None if the scene does not allow its question."""
