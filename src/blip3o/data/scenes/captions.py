"""True captions of scenes: short ones in many phrasings, and detailed ones."""

import numpy as np

from blip3o.data.scenes.types import Placed, Scene, place, relations, size_word
from blip3o.data.scenes.words import (
    PLACE_PHRASES,
    Group,
    finished,
    full_phrase,
    groups,
    join,
    on_background,
    opened,
    phrase,
    pick,
    reading_order,
    related,
    shuffled,
)

_COLORLESS_SHARE = 0.3
_BACKGROUND_SHARE = 0.35
_RELATION_SHARE = 0.6
_EXTRA_SHARE = 0.3


def caption_texts(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Returns different captions of a scene: up to three short ones, then a detailed one."""
    texts = [short_caption(scene, rng) for _ in range(3)]
    sentence = detailed_caption(scene)
    if rng.random() < 0.5:
        sentence = pick(rng, ("a photo of ", "a picture of ", "an image of ")) + sentence
    return list(dict.fromkeys([*texts, sentence]))


def pair_texts(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Returns different captions of two things that look different: their relation, or their names.

    Half of the captions omit the colors. A model learns such prompts last, because only one caption
    in twenty of `caption_texts` names two things without colors.
    """
    texts = []
    for colors in (False, True):
        named = groups(scene, colors=colors)
        listed = join([phrase(group) for group in shuffled(rng, named)])
        for words in (_pair(scene, named, rng), _pair(scene, named, rng), listed):
            texts.append(finished(rng, opened(rng, words)))
    return list(dict.fromkeys([*texts, detailed_caption(scene)]))


def short_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Returns a caption that names every object, with or without its color or place."""
    named = groups(scene, colors=bool(rng.random() >= _COLORLESS_SHARE))
    if len(scene.objects) == 1:
        words = _single(scene.objects[0], named[0], rng)
    elif len(scene.objects) == 2 and len(named) == 2 and rng.random() < _RELATION_SHARE:
        words = _pair(scene, named, rng)
    else:
        words = join([phrase(group) for group in shuffled(rng, named)])
    if rng.random() < _BACKGROUND_SHARE:
        words = f"{words} {on_background(scene.background)}"
    return finished(rng, opened(rng, words))


def _single(one: Placed, group: Group, rng: np.random.Generator) -> str:
    words = phrase(group, size_word(one) if rng.random() < _EXTRA_SHARE else "")
    return f"{words} {PLACE_PHRASES[place(one)]}" if rng.random() < _EXTRA_SHARE else words


def _pair(scene: Scene, named: list[Group], rng: np.random.Generator) -> str:
    pair = reading_order(scene.objects)
    first = int(rng.integers(2))
    relation = pick(rng, tuple(relations(pair[first], pair[1 - first])))
    return related(rng, phrase(named[first]), relation, phrase(named[1 - first]))


def detailed_caption(scene: Scene) -> str:
    """Returns the canonical description: size, color and place of each object, and the background.

    For example "a large red cat on the left and a small blue car on the right, on a light blue
    background".
    """
    objects = join([full_phrase(one) for one in reading_order(scene.objects)])
    return f"{objects}, {on_background(scene.background)}"
