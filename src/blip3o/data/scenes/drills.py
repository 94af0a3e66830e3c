"""Drills: to find a thing by its name is the skill that is learned last, so it is asked for a lot.

In most of them an answer tells several facts, each right after the name of what it is about.
"""

from collections import Counter
from collections.abc import Callable

import numpy as np

from blip3o.data.scenes.asking import (
    HOW_MANY,
    IS_THERE,
    QA,
    absent_thing,
    choose,
    is_there_look,
    is_there_thing,
    single_objects,
)
from blip3o.data.scenes.phrasing import pick
from blip3o.data.scenes.things import COLORS, NUMBER_WORDS, plural, with_article
from blip3o.data.scenes.types import Scene, place
from blip3o.data.scenes.words import join, noun, reading_order

COLORS_OF = ("What color are {}?", "Which color are {}?", "What is the color of {}?")


def _is_there(scene: Scene, rng: np.random.Generator) -> QA:
    """Asks whether something is there, with half a chance each way."""
    yes = bool(rng.random() < 0.5)
    ask = is_there_thing if rng.random() < 0.5 else is_there_look
    return QA(kind="is_there", question=ask(scene, rng, yes), answer="yes" if yes else "no")


def _how_many(scene: Scene, rng: np.random.Generator) -> QA:
    """Asks for the number of one thing, which half the time is zero.

    As seldom as the kind "count" asks for zero, the name is not looked for: the number of things
    in the image is told.
    """
    there = Counter(one.thing for one in scene.objects)
    is_there = bool(rng.random() < 0.5)
    thing = choose(rng, list(scene.objects)).thing if is_there else absent_thing(scene, rng)
    question = pick(rng, HOW_MANY).format(plural(thing))
    return QA(kind="how_many", question=question, answer=NUMBER_WORDS[there[thing]])


def one_or_none(scene: Scene, rng: np.random.Generator) -> list[QA]:
    """Asks four times for the number of something of which there is one or none.

    Nothing but a look for the name tells which. Asked alone it is found out in 150 steps, all at
    once; among other questions it was not in 360 (docs/log.md, session 6).

    Args:
        scene: what the image shows; where no thing is alone, all answers are zero.
        rng: chooses things and phrasings.
    """
    alone = tuple(one.thing for one in single_objects(scene))
    asked = []
    for _ in range(4):
        is_there = bool(alone) and bool(rng.random() < 0.5)
        thing = pick(rng, alone) if is_there else absent_thing(scene, rng)
        question = pick(rng, HOW_MANY).format(plural(thing))
        asked.append(QA(kind="one_or_none", question=question, answer=NUMBER_WORDS[is_there]))
    return asked


def look_ups(scene: Scene, rng: np.random.Generator) -> list[QA]:
    """Asks three times for colors by name, perhaps for that of a thing that is not there.

    What is learned first, because it is alone: among drills of other kinds colors are guessed from
    what is left over, and never looked up (docs/log.md, sessions 8 and 9).

    Args:
        scene: what the image shows; where no thing is alone, all things are asked for.
        rng: chooses things, their order and phrasings.
    """
    return [_colors_of(scene, rng) or colors_of_all(scene, rng) for _ in range(3)]


def colors_of_all(scene: Scene, rng: np.random.Generator) -> QA:
    """Asks for the colors of all things that are there: "the cats red; the dog blue".

    Args:
        scene: what is there.
        rng: chooses the order of things and the phrasing.
    """
    colors: dict[str, list[str]] = {}
    for one in reading_order(scene.objects):
        colors.setdefault(one.thing, []).append(one.color)
    facts = [
        (f"the {plural(thing) if len(own) > 1 else thing}", join(list(dict.fromkeys(own))))
        for thing, own in colors.items()
    ]
    return _asked("colors_of", pick(rng, COLORS_OF), facts, rng)


def bare_look_up(pair: Scene, rng: np.random.Generator) -> tuple[str, QA]:
    """Returns "red cat blue dog" and what follows: "dog blue cat red", of which colors are learned.

    With an article or a frame around it, it is not found out in the same time (docs/log.md).

    Args:
        pair: two different things.
        rng: chooses the order of both.
    """
    first, second = (rng.permutation(2) for _ in range(2))
    said = [pair.objects[int(k)] for k in first]
    asked = [pair.objects[int(k)] for k in second]
    words = "".join(f" {one.color} {one.thing}" for one in said)
    return words, _facts("bare", "", [(f" {one.thing}", one.color) for one in asked], between="")


def _colors_of(scene: Scene, rng: np.random.Generator) -> QA | None:
    """Asks for the colors of several things at once, perhaps of one that is not there.

    In the answer each fact follows its name, so that the name's own token has to find the thing:
    one step of attention, which is learned in 150 steps. "What color is the cat?" needs two (find
    it; carry it to the end of the question) and is not learned without. The names are not learned:
    they only repeat the question, and their loss hides that of the facts.
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
    """Asks how many there are of several things and of a color at once."""
    things = Counter(one.thing for one in scene.objects)
    facts = [(plural(thing), NUMBER_WORDS[number]) for thing, number in things.items()]
    if rng.random() < 0.5:
        color = choose(rng, list(scene.objects)).color
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
    """Returns one question for all facts, with or without the absent thing; None for one fact."""
    if len(facts) < 2 or rng.random() < 0.5:
        facts = [*facts, absent]
    if len(facts) < 2:
        return None
    return _asked(kind, question, facts, rng)


def _asked(kind: str, question: str, facts: list[tuple[str, str]], rng: np.random.Generator) -> QA:
    """Returns one question for all facts, in mixed order."""
    facts = [facts[int(k)] for k in rng.permutation(len(facts))]
    return _facts(kind, question.format(join([name for name, _ in facts])), facts)


def _facts(kind: str, question: str, facts: list[tuple[str, str]], between: str = "; ") -> QA:
    """Returns a question with facts for an answer, each right after its name, and learned alone."""
    answer, learned = "", []
    for name, said in facts:
        answer += f"{between}{name}" if answer else name
        learned.append((len(answer), len(answer) + 1 + len(said)))  # with the space before it
        answer += f" {said}"
    return QA(kind=kind, question=question, answer=answer, learned=tuple(learned))


DRILL_MAKERS: dict[str, Callable[[Scene, np.random.Generator], QA | None]] = {
    "colors_of": _colors_of,
    "places_of": _places_of,
    "are_there": _are_there,
    "counts_of": _counts_of,
    "is_there": _is_there,
    "how_many": _how_many,
}
"""The question of each drill; None where it cannot be asked."""
