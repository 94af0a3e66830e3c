"""Questions without an image: a description of a scene precedes them."""

import re
from collections.abc import Sequence

import numpy as np

from blip3o.data.scenes.captions import detailed_caption
from blip3o.data.scenes.frames import frames
from blip3o.data.scenes.phrasing import Request, plain_phrase, worded
from blip3o.data.scenes.question_forms import FORMS, description
from blip3o.data.scenes.questions import KINDS, QA, ask, questions
from blip3o.data.scenes.synonyms import COLOR_NAMES, PLURALS, THING_NAMES
from blip3o.data.scenes.things import plural
from blip3o.data.scenes.types import Scene, relations
from blip3o.data.scenes.words import (
    RELATION_PHRASES,
    Group,
    groups,
    join,
    on_background,
    phrase,
    pick,
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
    request, asked = _pair(scene, rng) or (Request(groups=tuple(groups(scene))), [])
    asked += [
        qa
        for kind in ("what", "color", "count", "count", "yes_no", "yes_no", "either")
        if (qa := ask(scene, rng, kind, "train", _SHORT_FORMS))
    ]
    words = worded(request, rng, "train").rstrip(".")
    return f"{words}{'' if words[-1] in '?!' else '.'} ", shuffled(rng, asked)[:_TURNS]


def restate(request: Request, rng: np.random.Generator) -> QA:
    """Returns a prompt in any of the wordings of training, and what it says in the plainest one.

    The answer depends on the meaning alone: the left or upper one of two related groups comes
    first. Groups without a relation keep the order of the prompt.
    """
    words = worded(request, rng, "train")
    asked = pick(rng, frames("questions", "restate", "train"))
    return QA(kind="restate", question=asked.format(words=words), answer=_plain(request, words))


def _plain(request: Request, words: str) -> str:
    left = _in_order(request.groups, words)
    plain = ""
    if request.relation:
        first, name, second = request.relation
        if name in ("right of", "below"):
            first, name, second = second, _OPPOSITES[name], first
        pair = (request.groups[first], request.groups[second])
        left = [group for group in left if group not in pair]
        plain = f"{plain_phrase(pair[0])} {RELATION_PHRASES[name][0]} {plain_phrase(pair[1])}"
    listed = [join([plain_phrase(group) for group in left])] if left else []
    plain = ", and ".join([plain, *listed] if plain else listed)
    return f"{plain} {on_background(request.background)}" if request.background else plain


def _in_order(named: Sequence[Group], words: str) -> list[Group]:
    """Returns the groups in the order in which words name them.

    Groups of different things are found by their things, those of one thing by their colors.
    """
    text = words.lower()
    is_one_thing = len({group.thing for group in named}) == 1

    def start(group: Group) -> int:
        names = COLOR_NAMES[group.color] if is_one_thing and group.color else ()
        if not names:
            others = (group.thing, *THING_NAMES.get(group.thing, ()))
            names = (*others, *map(plural, others), *PLURALS.get(group.thing, "").splitlines())
        else:
            names = (str(group.color), *names)
        pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        match = re.search(rf"\b(?:{pattern})\b", text)
        return match.start() if match else len(text)

    return sorted(named, key=start)


def _pair(scene: Scene, rng: np.random.Generator) -> tuple[Request, list[QA]] | None:
    """Returns a request with the relation of two objects, and questions for each of the two."""
    named = shuffled(rng, groups(scene))
    if not len(scene.objects) == len(named) == 2 or rng.random() < 0.3:
        return None
    one, other = scene.objects
    if (one.thing, one.color) != (named[0].thing, named[0].color):
        one, other = other, one
    relation = pick(rng, tuple(relations(one, other)))
    request = Request(groups=tuple(named), relation=(0, relation, 1))
    if one.thing == other.thing:
        return request, []
    asked = []
    ends = ((relation, other.thing, named[0]), (_OPPOSITES[relation], one.thing, named[1]))
    for name, base, answer in ends:
        frame = pick(rng, frames("questions", "related", "train"))
        question = frame.format(relation=pick(rng, RELATION_PHRASES[name]), name=base)
        asked.append(QA(kind="relation", question=question, answer=phrase(answer)))
    return request, asked
