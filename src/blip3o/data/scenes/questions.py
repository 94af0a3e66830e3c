"""Questions about scenes with short, unambiguous answers, in many wordings."""

from dataclasses import dataclass

import numpy as np

from blip3o.data.scenes.frames import Wording, frames
from blip3o.data.scenes.question_forms import FORMS, Say
from blip3o.data.scenes.types import Scene
from blip3o.data.scenes.words import named_uniquely, pick, shuffled

KINDS: tuple[str, ...] = tuple(kind for kind in FORMS if kind != "describe")
"""Kinds of questions with short answers."""
_OFTEN = ("count", "where", "yes_no", "yes_no", "list", "caption", "background", "background")
"""Kinds that a conversation asks for more often than once in a round of all kinds."""
_TURNS = 6
"""Questions of a conversation."""
_WRAPPED_SHARE, _LOWERED_SHARE, _BARE_SHARE = 0.1, 0.25, 0.15
"""Shares of questions with words around them, without capitals, and without a question mark."""


@dataclass(frozen=True, kw_only=True)
class QA:
    """A question and its answer."""

    kind: str
    question: str
    answer: str


def questions(
    scene: Scene,
    rng: np.random.Generator,
    kinds: tuple[str, ...] = KINDS,
    wording: Wording = "template",
    forms: frozenset[str] | None = None,
) -> list[QA]:
    """Returns one question of each kind that the scene allows, in random order.

    An answer depends on the facts alone, never on the wording.

    Args:
        scene: the scene of the image.
        rng: source of the random choices.
        kinds: names from KINDS.
        wording: the frames to use. "template" uses neither synonyms nor questions about what is
            not there.
        forms: sections of frames/questions.txt that may be used; None for all.
    """
    asked = [ask(scene, rng, kind, wording, forms) for kind in shuffled(rng, kinds)]
    return [qa for qa in asked if qa is not None]


def ask(
    scene: Scene,
    rng: np.random.Generator,
    kind: str,
    wording: Wording,
    forms: frozenset[str] | None = None,
) -> QA | None:
    """Returns a question of a kind, or None if the scene allows none; see `questions`."""
    say = Say(rng=rng, is_plain=wording == "template")
    left = {name: one for name, one in FORMS[kind].items() if forms is None or name in forms}
    while left:
        shares = np.array([share for share, _ in left.values()])
        name = tuple(left)[int(rng.choice(len(left), p=shares / shares.sum()))]
        filled = left.pop(name)[1](scene, say)
        if filled is not None:
            gaps, answer = filled
            question = pick(rng, frames("questions", name, wording)).format(**gaps)
            return QA(kind=kind, question=_styled(question, rng, wording), answer=answer)
    return None


def conversation(scene: Scene, rng: np.random.Generator) -> list[QA]:
    """Returns about six different questions about an image, in the wordings of training."""
    asked: dict[str, QA] = {}
    for kind in shuffled(rng, (*FORMS, *_OFTEN)):
        qa = ask(scene, rng, kind, "train")
        if qa is not None:
            asked.setdefault(qa.question, qa)
        if len(asked) == _TURNS:
            break
    return list(asked.values())


def names(scene: Scene, rng: np.random.Generator) -> list[QA]:
    """Returns a question about the color of each thing that its name tells apart, in plain words.

    A model that learns only these at first finds a thing by its name within minutes. Among all
    kinds of questions it does not, because most of them can be guessed without names.
    """
    options = frames("questions", "color of", "template")
    asked = [
        QA(kind="color", question=pick(rng, options).format(name=name), answer=one.color)
        for one, name in shuffled(rng, named_uniquely(scene))
    ]
    return asked or questions(scene, rng, ("color", "list"))


def _styled(question: str, rng: np.random.Generator, wording: Wording) -> str:
    """Returns a question as people type it: with words around it, in lower case, unmarked."""
    if wording == "template":
        return question
    if question[-1] in ".?!" and rng.random() < _WRAPPED_SHARE:
        question = pick(rng, frames("questions", "wrapper", wording)).format(question=question)
    if rng.random() < _LOWERED_SHARE:
        question = question.lower()
    if rng.random() < _BARE_SHARE:
        question = question.rstrip(".?!")
    return question
