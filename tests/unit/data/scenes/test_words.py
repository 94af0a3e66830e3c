import re
from collections import Counter
from collections.abc import Callable

import pytest

from blip3o.core.errors import UsageError
from blip3o.core.rng import numpy_rng
from blip3o.data.scenes.captions import (
    caption_texts,
    detailed_caption,
    group_texts,
    short_caption,
)
from blip3o.data.scenes.heldout import (
    heldout_backgrounds,
    heldout_colors,
    heldout_counts,
    heldout_pairs,
    is_heldout,
)
from blip3o.data.scenes.prompts import CATEGORIES, EvalPrompt, eval_prompts
from blip3o.data.scenes.scene import sample_groups, sample_pair, sample_scene
from blip3o.data.scenes.things import COLORS, THINGS, plural
from blip3o.data.scenes.types import Placed, Scene, relations, size_word

NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}
THING_OF = {name: thing for thing in THINGS for name in (thing, plural(thing))}
NOUN = re.compile(
    rf"\b({'|'.join(NUMBERS)}) (?:(small|medium|large) )?(?:({'|'.join(COLORS)}) )?"
    rf"({'|'.join(sorted(THING_OF, key=len, reverse=True))})\b"
)
RELATION = re.compile(
    r"(to the left of|left of|on the left of|to the right of|right of|"
    r"on the right of|above|over|below|under) (.*)"
)
MEANS = {"above": "above", "over": "above", "below": "below", "under": "below"}
SCENES = [sample_scene(0, index) for index in range(600)]
CAT_AND_BUSES = Scene(
    background="light blue",
    objects=(
        Placed(thing="cat", color="orange", x=0.27, y=0.27, size=0.42),
        Placed(thing="bus", color="blue", x=0.73, y=0.27, size=0.24),
        Placed(thing="bus", color="blue", x=0.27, y=0.73, size=0.32),
    ),
)


def nouns(text: str) -> list[tuple[int, str | None, str]]:
    return [
        (NUMBERS[number], color or None, THING_OF[thing])
        for number, _, color, thing in NOUN.findall(text.lower())
    ]


def test_short_captions_name_every_object_and_only_these() -> None:
    for index, scene in enumerate(SCENES):
        for turn in range(3):
            text = short_caption(scene, numpy_rng(1, "caption", index, turn), wide=False)
            found = nouns(text)
            assert sum(number for number, _, _ in found) == len(scene.objects), text
            for number, color, thing in found:
                shown = [o for o in scene.objects if o.thing == thing and color in (None, o.color)]
                assert number == len(shown), text
            background = re.search(r"on an? (.*) background", text)
            assert background is None or background[1] == scene.background


def test_relations_in_captions_are_true() -> None:
    seen = Counter()
    for index, scene in enumerate(SCENES):
        seen[
            told_relation(short_caption(scene, numpy_rng(2, "caption", index), wide=False), scene)
        ] += 1
    assert set(seen) == {None, "left of", "right of", "above", "below"}


def told_relation(text: str, scene: Scene) -> str | None:
    """Returns the relation that a caption states, if any, and checks it."""
    match = RELATION.search(text.lower())
    if match is None:
        return None
    name = "left of" if "left" in match[1] else "right of" if "right" in match[1] else None
    name = name or MEANS[match[1]]
    (_, color_a, thing_a), (_, color_b, thing_b) = nouns(text)
    first = next(o for o in scene.objects if o.thing == thing_a and color_a in (None, o.color))
    second = next(
        o
        for o in scene.objects
        if o.thing == thing_b and color_b in (None, o.color) and o is not first
    )
    assert name in relations(first, second), text
    return name


@pytest.mark.parametrize("sample", [sample_pair, sample_groups])
def test_captions_of_pairs_and_groups_have_colors_or_none(
    sample: Callable[[int, int], Scene],
) -> None:
    seen = Counter()
    for index in range(100):
        scene = sample(0, index)
        number = len({one.thing for one in scene.objects})
        assert number >= 2
        assert not is_heldout(scene)
        *texts, detailed = group_texts(scene, numpy_rng(0, "pairs", index))
        assert detailed == detailed_caption(scene)
        for text in texts:
            found = [(color, thing) for _, color, thing in nouns(text)]
            looks = {(one.color, one.thing) for one in scene.objects}
            looks |= {(None, one.thing) for one in scene.objects}
            assert set(found) <= looks, text
            if len(found) == number:  # in the plain words of this test
                seen[found[0][0] is not None] += 1
    assert min(seen[False], seen[True]) > 100


def test_the_detailed_caption_is_exact() -> None:
    assert detailed_caption(CAT_AND_BUSES) == (
        "a large orange cat at the top left, a small blue bus at the top right "
        "and a medium blue bus at the bottom left, on a light blue background"
    )
    texts = caption_texts(CAT_AND_BUSES, numpy_rng(0, "caption"))
    assert 5 <= len(texts) <= 9
    assert texts[-1].endswith(detailed_caption(CAT_AND_BUSES))


def test_captions_have_many_phrasings() -> None:
    for wide, number in ((False, 40), (True, 250)):
        rngs = [numpy_rng(0, "caption", k) for k in range(300)]
        assert len({short_caption(SCENES[1], rng, wide=wide) for rng in rngs}) > number


@pytest.mark.parametrize("category", CATEGORIES)
def test_prompts_are_different_deterministic_and_held_out(category: str) -> None:
    prompts = eval_prompts(category, 120, 0)
    assert prompts == eval_prompts(category, 120, 0)
    assert prompts != eval_prompts(category, 120, 1)
    assert len({prompt.prompt for prompt in prompts}) == 120
    for prompt in prompts:
        found = [{"thing": t, "color": c, "count": n} for n, c, t in nouns(prompt.prompt)]
        assert found == list(prompt.include), prompt
        first = prompt.include[0]
        pair = tuple(sorted(item["thing"] for item in prompt.include))
        if category == "single_object":
            background = re.search(r"on an? (.*) background", prompt.prompt)
            assert background
            assert (first["thing"], background[1]) in heldout_backgrounds()
            assert prompt.background == background[1]
        elif category == "counting":
            assert (first["thing"], first["count"]) in heldout_counts()
        elif category == "colors":
            assert (first["thing"], first["color"]) in heldout_colors()
        else:
            assert pair in heldout_pairs()
        kinds = {"single_object": "background", "counting": "count", "colors": "color"}
        assert kinds.get(category, "pair") in {kind for kind, *_ in prompt.heldout}
        assert (prompt.relation is not None) == (category == "position")
        if prompt.relation:
            assert prompt.relation == (0, relation_said(prompt), 1)
        assert all(item["color"] for item in prompt.include) or category != "color_attr"


def relation_said(prompt: EvalPrompt) -> str:
    text = prompt.prompt
    if match := re.search(r"(on the left|on the right|at the top|at the bottom) and", text):
        return {"on the left": "left of", "on the right": "right of"}.get(
            match[1], "above" if match[1] == "at the top" else "below"
        )
    match = RELATION.search(text)
    assert match
    return MEANS.get(match[1]) or ("left of" if "left" in match[1] else "right of")


def test_too_many_prompts_and_unknown_categories_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean counting"):
        eval_prompts("countin")
    with pytest.raises(UsageError, match="different prompts"):
        eval_prompts("single_object", 600)


def test_size_words() -> None:
    assert [size_word(one) for one in CAT_AND_BUSES.objects] == ["large", "small", "medium"]
