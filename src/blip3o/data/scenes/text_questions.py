"""Questions without an image: a description of a scene precedes them."""

import numpy as np

from blip3o.data.scenes.captions import detailed_caption
from blip3o.data.scenes.frames import frames
from blip3o.data.scenes.question_forms import FORMS, description
from blip3o.data.scenes.questions import KINDS, QA, ask, questions
from blip3o.data.scenes.types import Scene, relations
from blip3o.data.scenes.words import (
    RELATION_PHRASES,
    Group,
    groups,
    join,
    opened,
    phrase,
    pick,
    related,
    shuffled,
)

_DETAILED_FORMS = frozenset(form for kind in FORMS for form in FORMS[kind]) - {
    "related",
    "is related",
}
"""Forms of questions about detailed captions, which give places but not distances."""
_SHORT_FORMS = frozenset(
    (
        *("what colored", "color of", "colors of", "count all", "count things", "count color"),
        *("exists", "exist", "is color", "is count", "either color", "either thing"),
    )
)
"""Forms of questions that a list of things with their colors answers in any order."""
_DETAILED_OPENINGS = ("There is {}. ", "An image shows {}. ", "{}. ", "I see {}. ")
_TURNS = 6
_COLORLESS_SHARE = 0.3
_OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def text_conversation(scene: Scene, rng: np.random.Generator) -> tuple[str, list[QA]]:
    """Returns a detailed or a short caption, and questions that it answers.

    Before a model can draw from a prompt, it must bind the words of the prompt: which thing is red,
    which thing is left of another. Only text without an image teaches it to look at the words.
    """
    if rng.random() < 0.5:
        words = pick(rng, _DETAILED_OPENINGS).format(detailed_caption(scene))
        if rng.random() < 0.3:
            words = f"{description(scene)} "
        return words, questions(scene, rng, KINDS, "train", _DETAILED_FORMS)[:_TURNS]
    words, asked = _pair(scene, rng) or (_listed(shuffled(rng, groups(scene))), [])
    asked += [
        qa
        for kind in ("what", "color", "count", "count", "yes_no", "yes_no", "either")
        if (qa := ask(scene, rng, kind, "train", _SHORT_FORMS))
    ]
    return f"{opened(rng, words)}. ", shuffled(rng, asked)[:_TURNS]


def restate(scene: Scene, rng: np.random.Generator) -> QA:
    """Returns a prompt in any of the wordings of training, and what it says in the plainest one.

    The answer keeps the order of the prompt: "a red cat and two blue dogs", or "a red cat to the
    left of a blue dog".
    """
    named = shuffled(rng, groups(scene, colors=bool(rng.random() >= _COLORLESS_SHARE)))
    words = plain = _listed(named)
    if len(scene.objects) == len(named) == 2 and rng.random() < 0.7:
        one, other = scene.objects
        if one.thing != named[0].thing or named[0].color not in (None, one.color):
            one, other = other, one
        relation = pick(rng, tuple(relations(one, other)))
        words = related(rng, phrase(named[0]), relation, phrase(named[1]))
        plain = f"{phrase(named[0])} {RELATION_PHRASES[relation][0]} {phrase(named[1])}"
    asked = pick(rng, frames("questions", "restate", "train"))
    return QA(kind="restate", question=asked.format(words=opened(rng, words)), answer=plain)


def _listed(named: list[Group]) -> str:
    return join([phrase(group) for group in named])


def _pair(scene: Scene, rng: np.random.Generator) -> tuple[str, list[QA]] | None:
    """Returns a phrase with the relation of two objects, and questions for each of the two."""
    named = shuffled(rng, groups(scene))
    if not len(scene.objects) == len(named) == 2 or rng.random() < 0.3:
        return None
    one, other = scene.objects
    if (one.thing, one.color) != (named[0].thing, named[0].color):
        one, other = other, one
    relation = pick(rng, tuple(relations(one, other)))
    words = related(rng, phrase(named[0]), relation, phrase(named[1]))
    if one.thing == other.thing:
        return words, []
    asked = []
    ends = ((relation, other.thing, named[0]), (_OPPOSITES[relation], one.thing, named[1]))
    for name, base, answer in ends:
        frame = pick(rng, frames("questions", "related", "train"))
        question = frame.format(relation=pick(rng, RELATION_PHRASES[name]), name=base)
        asked.append(QA(kind="relation", question=question, answer=phrase(answer)))
    return words, asked
