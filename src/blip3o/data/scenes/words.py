"""The words of scenes: noun phrases, groups of equal objects and lists."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from blip3o.data.scenes.things import NUMBER_WORDS, plural, with_article
from blip3o.data.scenes.types import Placed, Scene, place, size_word

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


@dataclass(frozen=True, kw_only=True)
class Group:
    """All objects of a scene that one noun phrase names."""

    thing: str
    color: str | None
    """Their color; None if the phrase leaves colors out."""
    count: int


def groups(scene: Scene, *, colors: bool = True) -> list[Group]:
    """Returns the groups of equal objects, in reading order of their first object.

    Args:
        scene: what to describe.
        colors: whether objects of different colors are different.

    """
    counts: dict[tuple[str, str | None], int] = {}
    for one in reading_order(scene.objects):
        key = (one.thing, one.color if colors else None)
        counts[key] = counts.get(key, 0) + 1
    return [Group(thing=thing, color=c, count=n) for (thing, c), n in counts.items()]


def reading_order(objects: Iterable[Placed]) -> list[Placed]:
    """Returns the objects row by row, each row from the left."""
    rows = {"top": 0, "left": 1, "center": 1, "right": 1, "bottom": 2}
    return sorted(objects, key=lambda one: (rows[place(one).split()[0]], one.x))


def noun(thing: str, color: str | None = None, count: int = 1) -> str:
    """Returns the noun without article or number: "red cats"."""
    name = thing if count == 1 else plural(thing)
    return f"{color} {name}" if color else name


def phrase(group: Group, adjective: str = "") -> str:
    """Returns the group with its article or number: "a red cat", "three small red cats"."""
    name = noun(group.thing, group.color, group.count)
    name = f"{adjective} {name}" if adjective else name
    return with_article(name) if group.count == 1 else f"{NUMBER_WORDS[group.count]} {name}"


def join(phrases: Sequence[str]) -> str:
    """Returns a list in words: "a, b and c"."""
    if len(phrases) == 1:
        return phrases[0]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def full_phrase(one: Placed) -> str:
    """Returns all there is to say: "a large red cat at the top left"."""
    group = Group(thing=one.thing, color=one.color, count=1)
    return f"{phrase(group, size_word(one))} {PLACE_PHRASES[place(one)]}"


def on_background(name: str) -> str:
    """Returns "on a light blue background"."""
    return f"on {with_article(name)} background"
