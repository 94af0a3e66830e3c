"""Questions without an image: a description of a scene precedes them."""

from dataclasses import replace

import numpy as np

from blip3o.data.scenes.captions import detailed_caption
from blip3o.data.scenes.drills import QA, colors_of_all
from blip3o.data.scenes.questions import DRILLS, KINDS, WORDED, names, questions
from blip3o.data.scenes.types import Scene, relations
from blip3o.data.scenes.words import Group, groups, join, opened, phrase, pick, related, shuffled

_DETAILED_KINDS: tuple[str, ...] = tuple(kind for kind in KINDS if kind != "relation")
"""Kinds of questions about detailed captions, which give places but not distances."""
_SHORT_KINDS = ("color", "count", "is_there", "how_many", "colors_of", "are_there", "counts_of")
"""Kinds of questions that a short caption with colors answers."""
_COLORLESS_SHARE = 0.3
_OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def text_conversation(scene: Scene, rng: np.random.Generator) -> tuple[str, list[QA]]:
    """Returns a detailed or a short caption, and questions that it answers.

    Before a model can draw from a prompt, it must bind the words of the prompt: which thing is red,
    which thing is left of another. Only text without an image teaches it to look at the words.
    """
    if rng.random() < 0.5:
        asked = [*questions(scene, rng, _DETAILED_KINDS)[:3], *questions(scene, rng, DRILLS)]
        return f"There is {detailed_caption(scene)}. ", asked
    named = groups(scene, colors=bool(rng.random() >= _COLORLESS_SHARE))
    is_pair = len(scene.objects) == len(named) == 2
    if is_pair and named[0].color is None:
        words, asked = _pair(scene, named, rng)
        return f"{opened(rng, words)}. ", asked
    named = groups(scene)
    asked = questions(scene, rng, _SHORT_KINDS)
    if is_pair and rng.random() < 0.7:
        words, related_too = _pair(scene, named, rng)
        asked += related_too
    else:
        words = join([phrase(group) for group in shuffled(rng, named)])
    return f"{opened(rng, words)}. ", asked


def text_names(scene: Scene, rng: np.random.Generator) -> tuple[str, list[QA]]:
    """Returns a detailed caption, and questions whose answers are the things it names."""
    return f"There is {detailed_caption(scene)}. ", names(scene, rng)


def text_look_ups(scene: Scene, rng: np.random.Generator) -> tuple[str, QA]:
    """Returns a list of the things in a scene, and the color of each thing.

    There is no question between the two. A model would look up the names in the question, where no
    color is next to them.
    """
    words = join([phrase(group) for group in shuffled(rng, groups(scene))])
    return f"{opened(rng, words)}.", replace(colors_of_all(scene, rng), question="")


def _pair(scene: Scene, named: list[Group], rng: np.random.Generator) -> tuple[str, list[QA]]:
    """Returns a phrase with the relation of two objects, and questions for each of the two."""
    one, other = scene.objects
    if one.thing != named[0].thing or named[0].color not in (None, one.color):
        one, other = other, one
    if rng.random() < 0.5:
        one, other, named = other, one, named[::-1]
    relation = pick(rng, tuple(relations(one, other)))
    words = related(rng, phrase(named[0]), relation, phrase(named[1]))
    if one.thing == other.thing:
        return words, []
    asked = []
    ends = ((relation, other.thing, named[0]), (_OPPOSITES[relation], one.thing, named[1]))
    for name, base, answer in ends:
        question = pick(rng, ("What is {} the {}?", "What can you see {} the {}?"))
        text = question.format(WORDED.get(name, name), base)
        asked.append(QA(kind="relation", question=text, answer=phrase(answer)))
    return words, asked
