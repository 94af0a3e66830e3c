"""True captions of scenes: short ones in very many wordings, and detailed ones."""

from dataclasses import replace

import numpy as np

from blip3o.data.scenes.phrasing import Request, worded
from blip3o.data.scenes.types import Placed, Scene, place, relations, size_word
from blip3o.data.scenes.words import (
    Group,
    finished,
    full_phrase,
    groups,
    join,
    on_background,
    pick,
    reading_order,
    shuffled,
)

_TEMPLATES, _FREE = 3, 5
"""Numbers of captions in the plain wordings, and in those of the hand-written frames."""
_COLORLESS_SHARE = 0.3
_SOME_COLORS_SHARE = 0.15
_BACKGROUND_SHARE = 0.3
_RELATION_SHARE = 0.6
_SIZE_SHARE = 0.12
_PLACE_SHARES = (0.35, 0.15)
"""Shares of captions with places: of a single object, and of several."""


def caption_texts(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Returns about nine different captions of a scene; the last one is detailed."""
    texts = [short_caption(scene, rng, wide=k >= _TEMPLATES) for k in range(_TEMPLATES + _FREE)]
    sentence = detailed_caption(scene)
    if rng.random() < 0.5:
        sentence = pick(rng, ("a photo of ", "a picture of ", "an image of ")) + sentence
    return list(dict.fromkeys([*texts, sentence]))


def group_texts(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Returns different captions of things that look different: their names, and two's relation.

    Half of the captions omit the colors. A model learns such prompts last, because only few
    captions of `caption_texts` name several things without colors.
    """
    texts = []
    for colors in (False, True):
        named = groups(scene, colors=colors)
        listed = Request(groups=tuple(named))
        if len(scene.objects) == 2:
            other = replace(listed, relation=_relation(scene, named, rng))
        else:
            other = Request(groups=tuple(shuffled(rng, named)))
        texts.append(finished(rng, worded(other, rng, "template")))
        texts.append(finished(rng, worded(listed, rng, "template")))
        texts += [worded(request, rng, "train") for request in (other, other, listed)]
    return list(dict.fromkeys([*texts, detailed_caption(scene)]))


def short_caption(scene: Scene, rng: np.random.Generator, *, wide: bool) -> str:
    """Returns a caption that names every object, with or without its color or place.

    Args:
        scene: the scene to describe.
        rng: source of the random choices.
        wide: whether to use the hand-written frames; False for the plain wordings.
    """
    request = request_of(scene, rng)
    return (
        worded(request, rng, "train") if wide else finished(rng, worded(request, rng, "template"))
    )


def request_of(scene: Scene, rng: np.random.Generator) -> Request:
    """Returns a request that the scene fulfils: all objects, and some of their attributes."""
    named = groups(scene, colors=bool(rng.random() >= _COLORLESS_SHARE))
    things = [group.thing for group in named]
    if rng.random() < _SOME_COLORS_SHARE:
        # "A cat and a red cat" would be unclear, so a thing in two colors keeps both.
        keeps = [rng.random() < 0.5 or things.count(group.thing) > 1 for group in named]
        named = [g if k else replace(g, color=None) for g, k in zip(named, keeps, strict=True)]
    relation = None
    if len(named) > 1 and rng.random() < _RELATION_SHARE / (len(named) - 1):
        relation = _relation(scene, named, rng)
    if relation is None:
        named = _with_places(scene, named, rng)
    named = [_with_size(scene, group, rng) for group in named]
    named = [named[int(k)] for k in rng.permutation(len(named))] if relation is None else named
    background = scene.background if rng.random() < _BACKGROUND_SHARE else None
    return Request(groups=tuple(named), relation=relation, background=background)


def _relation(
    scene: Scene, named: list[Group], rng: np.random.Generator
) -> tuple[int, str, int] | None:
    """Returns a relation of two random groups that all of their objects have, if there is one."""
    i, j = (int(k) for k in rng.permutation(len(named))[:2])
    pairs = [
        set(relations(one, other))
        for one in _members(scene, named[i])
        for other in _members(scene, named[j])
    ]
    names = sorted(set.intersection(*pairs))
    return (i, pick(rng, names), j) if names else None


def _members(scene: Scene, group: Group) -> list[Placed]:
    return [
        one
        for one in scene.objects
        if one.thing == group.thing and group.color in (None, one.color)
    ]


def _with_places(scene: Scene, named: list[Group], rng: np.random.Generator) -> list[Group]:
    if rng.random() >= _PLACE_SHARES[len(named) > 1] or any(g.count > 1 for g in named):
        return named
    return [replace(group, place=place(_members(scene, group)[0])) for group in named]


def _with_size(scene: Scene, group: Group, rng: np.random.Generator) -> Group:
    sizes = {size_word(one) for one in _members(scene, group)}
    if len(sizes) > 1 or rng.random() >= _SIZE_SHARE:
        return group
    return replace(group, size=sizes.pop())


def detailed_caption(scene: Scene) -> str:
    """Returns the canonical description: size, color and place of each object, and the background.

    For example "a large red cat on the left and a small blue car on the right, on a light blue
    background".
    """
    objects = join([full_phrase(one) for one in reading_order(scene.objects)])
    return f"{objects}, {on_background(scene.background)}"
