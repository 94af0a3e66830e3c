"""The words of scenes: noun phrases, lists and alternative phrasings.

Training captions and evaluation prompts share the phrasings.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from blip3o.data.scenes.things import NUMBER_WORDS, plural, with_article
from blip3o.data.scenes.types import Placed, Scene, place, size_word

T = TypeVar("T")

PLACE_PHRASES = {
    "top left": "at the top left",
    "top": "at the top",
    "top right": "at the top right",
    "left": "on the left",
    "center": "in the center",
    "right": "on the right",
    "bottom left": "at the bottom left",
    "bottom": "at the bottom",
    "bottom right": "at the bottom right",
}
OPENINGS = ("", "", "a photo of ", "a picture of ", "an image of ")
"""Words that may precede a noun phrase; the empty opening is twice as likely."""

RELATION_PHRASES = {
    "left of": ("to the left of", "left of", "on the left of"),
    "right of": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
OPPOSITE_SIDES = {
    "left of": ("on the left", "on the right"),
    "right of": ("on the right", "on the left"),
    "above": ("at the top", "at the bottom"),
    "below": ("at the bottom", "at the top"),
}


@dataclass(frozen=True, kw_only=True)
class Group:
    """The objects of a scene that one noun phrase names."""

    thing: str
    color: str | None
    """Their color; None if the phrase omits colors."""
    count: int
    size: str | None = None
    """The size word of all of them; None if the phrase omits it."""
    place: str | None = None
    """The place of an only object, one of PLACES; None if the phrase omits it."""


def groups(scene: Scene, *, colors: bool = True) -> list[Group]:
    """Returns the groups of equal objects, in reading order of their first object.

    Args:
        scene: the scene to describe.
        colors: whether objects with different colors belong to different groups.
    """
    counts: dict[tuple[str, str | None], int] = {}
    for one in reading_order(scene.objects):
        key = (one.thing, one.color if colors else None)
        counts[key] = counts.get(key, 0) + 1
    return [Group(thing=thing, color=c, count=n) for (thing, c), n in counts.items()]


def reading_order(objects: Iterable[Placed]) -> list[Placed]:
    """Returns the objects row by row, from left to right."""
    rows = {"top": 0, "left": 1, "center": 1, "right": 1, "bottom": 2}
    return sorted(objects, key=lambda one: (rows[place(one).split()[0]], one.x))


def noun(thing: str, color: str | None = None, count: int = 1) -> str:
    """Returns the noun without article or number: "red cats"."""
    name = thing if count == 1 else plural(thing)
    return f"{color} {name}" if color else name


def phrase(group: Group, adjective: str = "") -> str:
    """Returns the group with its article or number: "a red cat", "a small cat", "three cats"."""
    name = noun(group.thing, group.color, group.count)
    name = f"{adjective} {name}" if adjective else name
    return with_article(name) if group.count == 1 else f"{NUMBER_WORDS[group.count]} {name}"


def join(phrases: Sequence[str]) -> str:
    """Returns a list as words: "a, b and c"."""
    if len(phrases) == 1:
        return phrases[0]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def full_phrase(one: Placed) -> str:
    """Returns the full description of an object: "a large red cat at the top left"."""
    return f"a {size_word(one)} {noun(one.thing, one.color)} {PLACE_PHRASES[place(one)]}"


def on_background(name: str) -> str:
    """Returns "on a light blue background"."""
    return f"on {with_article(name)} background"


def named_uniquely(scene: Scene) -> list[tuple[Placed, str]]:
    """Returns each object that has a unique name, with its shortest unique name.

    The name is "cat" if there is one cat, "red cat" if only one cat is red.
    """
    things = Counter(one.thing for one in scene.objects)
    looks = Counter((one.thing, one.color) for one in scene.objects)
    return [
        (one, one.thing if things[one.thing] == 1 else noun(one.thing, one.color))
        for one in scene.objects
        if looks[one.thing, one.color] == 1
    ]


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Returns a random option."""
    return options[int(rng.integers(len(options)))]


def shuffled(rng: np.random.Generator, items: Sequence[T]) -> list[T]:
    """Returns the items in random order."""
    return [items[int(k)] for k in rng.permutation(len(items))]


def related(rng: np.random.Generator, first: str, relation: str, second: str) -> str:
    """Returns a phrase that relates two noun phrases: "a cat to the left of a dog"."""
    if rng.random() < 0.15:
        here, there = OPPOSITE_SIDES[relation]
        return f"{first} {here} and {second} {there}"
    return f"{first} {pick(rng, RELATION_PHRASES[relation])} {second}"


def opened(rng: np.random.Generator, words: str) -> str:
    """Returns noun phrases with or without an opening: "a photo of ...", "there is ..."."""
    if rng.random() < 0.15:
        is_plural = words.split()[0] in NUMBER_WORDS
        return f"there {'are' if is_plural else 'is'} {words}"
    return pick(rng, OPENINGS) + words


def finished(rng: np.random.Generator, sentence: str) -> str:
    """Returns the sentence, sometimes with a capital letter and a period, as people write."""
    if rng.random() < 0.1:
        sentence = sentence[0].upper() + sentence[1:]
        return f"{sentence}."
    return sentence
