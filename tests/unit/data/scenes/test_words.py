import re
from collections import Counter

import pytest

from blip3o.core.errors import UsageError
from blip3o.core.rng import numpy_rng
from blip3o.data.scenes.captions import (
    caption_texts,
    detailed_caption,
    pair_texts,
    short_caption,
)
from blip3o.data.scenes.drills import QA
from blip3o.data.scenes.export import scene_fields
from blip3o.data.scenes.heldout import (
    heldout_backgrounds,
    heldout_colors,
    heldout_counts,
    heldout_pairs,
    is_heldout,
)
from blip3o.data.scenes.prompts import CATEGORIES, EvalPrompt, eval_prompts
from blip3o.data.scenes.questions import KINDS, NAMES, describe, names, questions
from blip3o.data.scenes.scene import sample_pair, sample_scene
from blip3o.data.scenes.text_questions import text_conversation, text_names
from blip3o.data.scenes.things import COLORS, THINGS, plural
from blip3o.data.scenes.types import Placed, Scene, place, relations, size_word

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
SAID = {"left": "left of", "right": "right of", "top": "above", "bottom": "below"} | MEANS
OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
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


def test_captions_of_pairs_have_colors_or_none() -> None:
    seen = Counter()
    for index in range(100):
        scene = sample_pair(0, index)
        assert len({one.thing for one in scene.objects}) == 2
        assert not is_heldout(scene)
        *texts, detailed = pair_texts(scene, numpy_rng(0, "pairs", index))
        assert detailed == detailed_caption(scene)
        for text in texts:
            found = [(color, thing) for _, color, thing in nouns(text)]
            looks = {(one.color, one.thing) for one in scene.objects}
            looks |= {(None, one.thing) for one in scene.objects}
            assert set(found) <= looks, text
            if len(found) == 2:  # in the plain words of this test
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
        elif category == "counting":
            assert (first["thing"], first["count"]) in heldout_counts()
        elif category == "colors":
            assert (first["thing"], first["color"]) in heldout_colors()
        else:
            assert pair in heldout_pairs()
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


def test_every_kind_of_question_is_asked_and_answered_right() -> None:
    kinds = Counter()
    for index, scene in enumerate(SCENES):
        for qa in questions(scene, numpy_rng(0, "questions", index)):
            kinds[qa.kind] += 1
            check(scene, qa)
    assert set(kinds) == set(KINDS)


def check(scene: Scene, qa: QA) -> None:
    """Answers the question from its words, with independent code."""
    text = qa.question.lower().rstrip("?.")
    thing = next((THING_OF[w] for w in reversed(text.split()) if w in THING_OF), None)
    color = next((w for w in text.split() if w in COLORS), None)
    named = [o for o in scene.objects if thing in (None, o.thing) and color in (None, o.color)]
    if qa.kind == "color":
        assert {o.color for o in named} == {qa.answer}
    elif qa.kind == "count":
        words = ("zero", "one", "two", "three", "four")
        assert qa.answer == words[len(named)], qa
    elif qa.kind == "where":
        assert [place(o) for o in named] == [qa.answer]
    elif qa.kind == "background":
        assert qa.answer == scene.background
    elif qa.kind == "list":
        assert Counter({(c, t): n for n, c, t in nouns(qa.answer)}) == Counter(
            (o.color, o.thing) for o in scene.objects
        )
    elif qa.kind == "yes_no" and text.startswith(("is there", "can you see")):
        assert qa.answer == ("yes" if named else "no"), qa
    elif qa.kind == "what":
        (_, said_color, said_thing) = nouns(qa.answer)[0]
        where = re.search(
            r"(on|at|in) the ((?:top|bottom)? ?(?:left|right)?|center|top|bottom)$", text
        )
        there = [o for o in scene.objects if color == o.color or (where and place(o) == where[2])]
        assert [o.thing for o in there] == [said_thing], qa
        assert said_color in (None, there[0].color)
    elif qa.kind == "relation":
        name = next(r for r in ("left of", "right of", "above", "below") if r in text)
        (base,) = named
        (_, said_color, said_thing) = nouns(qa.answer)[0]
        there = [o for o in scene.objects if o is not base and name in relations(o, base)]
        assert [(o.color, o.thing) for o in there] == [(said_color, said_thing)], qa


def test_yes_and_no_are_about_as_frequent() -> None:
    answers = Counter(
        qa.answer
        for index, scene in enumerate(SCENES)
        for qa in questions(scene, numpy_rng(0, "questions", index))
        if qa.kind == "yes_no"
    )
    assert 0.4 < answers["yes"] / answers.total() < 0.6


def test_where_and_color_are_not_asked_about_things_without_one_answer() -> None:
    for turn in range(100):
        for qa in questions(CAT_AND_BUSES, numpy_rng(0, "q", turn)):
            if qa.kind in ("where", "relation"):
                assert "bus" not in qa.question


def test_describe_always_gives_the_canonical_caption() -> None:
    assert describe(CAT_AND_BUSES, numpy_rng(0, "q")).answer == detailed_caption(CAT_AND_BUSES)


def test_size_words() -> None:
    assert [size_word(one) for one in CAT_AND_BUSES.objects] == ["large", "small", "medium"]


def test_questions_about_a_text_are_answered_by_the_text() -> None:
    kinds, colorless = Counter(), 0
    for index, scene in enumerate(SCENES):
        words, asked = text_conversation(scene, numpy_rng(0, "text", index))
        named_looks = {(thing, color) for _, _, color, thing in NOUN.findall(words)}
        if not any(color for _, color in named_looks):
            assert {qa.kind for qa in asked} == {"relation"}
            assert {THING_OF[thing] for thing, _ in named_looks} == {o.thing for o in scene.objects}
            colorless += 1
        else:
            assert {(THING_OF[thing], color) for thing, color in named_looks} == {
                (o.thing, o.color) for o in scene.objects
            }
        is_short = not words.startswith("There")
        for qa in asked:
            kinds[qa.kind, is_short] += 1
            if is_short and qa.kind == "relation":
                _check_relation(words, qa)
            assert not (is_short and qa.kind in ("where", "places_of", "background"))
    assert colorless > 10
    assert kinds["relation", True] > 50
    assert kinds["are_there", True] > 50
    assert kinds["where", False] > 50
    assert kinds["places_of", False] > 50


def _check_relation(words: str, qa: QA) -> None:
    """A relation works in both directions: "a cat left of a dog" also places the dog."""
    one, other = NOUN.finditer(words)
    middle = words[one.end() : other.start()]
    relation = next(means for word, means in SAID.items() if word in middle)
    ends = {relation: (one, other), OPPOSITES[relation]: (other, one)}
    asked = next(name for name in OPPOSITES if name in qa.question)
    answer, base = ends[asked]
    assert qa.answer == answer.group()
    assert qa.question.endswith(f"the {base.group(4)}?")


def test_names_are_asked_for_in_images_and_in_descriptions() -> None:
    kinds = set()
    for index, scene in enumerate(SCENES[:50]):
        seen = names(scene, numpy_rng(0, "names", index))
        words, read = text_names(scene, numpy_rng(0, "names", index))
        assert seen == read
        assert words == f"There is {detailed_caption(scene)}. "
        kinds |= {qa.kind for qa in seen}
        known = {one.thing for one in scene.objects}
        for qa in seen:
            named_looks = {THING_OF[name] for *_, name in NOUN.findall(qa.answer)}
            if qa.kind == "background":
                assert qa.answer == scene.background
            elif qa.kind == "list":
                assert named_looks == known
            else:
                assert len(named_looks) == 1
                assert named_looks <= known
    assert kinds == set(NAMES)


def test_training_asks_drills_and_no_question_twice() -> None:
    for index, scene in enumerate(SCENES[:50]):
        fields = scene_fields(scene, index, numpy_rng(0, "words", index))
        for name in (
            "conversations",
            "text_conversations",
            "drills",
            "text_drills",
            "count_drills",
            "look_ups",
            "names",
            "text_names",
        ):
            asked = [turn["value"] for turn in fields[name][0::2]]
            plain = [text.split("\n")[-1].split(". ")[-1] for text in asked]
            assert asked
            assert len(set(plain)) == len(plain)
        if 1 in Counter(one.thing for one in scene.objects).values():
            assert any("learn" in turn for turn in fields["drills"])
            assert any("learn" in turn for turn in fields["conversations"])


def test_the_description_before_the_questions_is_marked_as_context() -> None:
    for index, scene in enumerate(SCENES[:50]):
        fields = scene_fields(scene, index, numpy_rng(0, "words", index))
        for name in ("text_conversations", "text_drills", "text_names"):
            first = fields[name][0]
            words, question = first["value"][: first["context"]], first["value"][first["context"] :]
            assert {THING_OF[thing] for *_, thing in NOUN.findall(words)} == {
                one.thing for one in scene.objects
            }
            assert words.endswith(". ")
            assert question[0].isupper()
            assert ". " not in question
