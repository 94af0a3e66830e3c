"""Answers to questions in any wording are true, and conversations hold what training needs."""

import re
from collections import Counter

import pytest

from blip3o.core.rng import numpy_rng
from blip3o.data.scenes.captions import request_of
from blip3o.data.scenes.export import scene_fields
from blip3o.data.scenes.frames import Wording, frames
from blip3o.data.scenes.questions import KINDS, QA, questions
from blip3o.data.scenes.scene import sample_scene
from blip3o.data.scenes.synonyms import COLOR_NAMES, PLURALS, THING_NAMES
from blip3o.data.scenes.talk import TOPICS
from blip3o.data.scenes.text_questions import restate, text_conversation
from blip3o.data.scenes.things import COLORS, THINGS, plural
from blip3o.data.scenes.types import Placed, Scene, place, relations
from blip3o.data.scenes.words import PLACE_PHRASES
from blip3o.eval.scenes import objects_named

CANONICAL = {
    **{plural(name): thing for thing in THINGS for name in (thing, *THING_NAMES.get(thing, ()))},
    **{name: thing for thing in THINGS for name in (thing, *THING_NAMES.get(thing, ()))},
    **{name: thing for thing, name in PLURALS.items()},
    **{name: color for color in COLORS for name in (color, *COLOR_NAMES[color])},
}
NAMES = re.compile(
    rf"\b({'|'.join(sorted(map(re.escape, CANONICAL), key=len, reverse=True))})\b", re.IGNORECASE
)
SCENES = [sample_scene(0, index) for index in range(150)]
CAT_AND_BUSES = Scene(
    background="light blue",
    objects=(
        Placed(thing="cat", color="orange", x=0.27, y=0.27, size=0.42),
        Placed(thing="bus", color="blue", x=0.73, y=0.27, size=0.24),
        Placed(thing="bus", color="blue", x=0.27, y=0.73, size=0.32),
    ),
)
WORDINGS: tuple[Wording, ...] = ("template", "train", "heldout")


def asked(scene: Scene, index: int, wording: Wording) -> list[QA]:
    return questions(scene, numpy_rng(0, "questions", index), wording=wording)


@pytest.mark.parametrize("wording", WORDINGS)
def test_every_kind_is_asked_in_every_wording_and_answered_right(wording: Wording) -> None:
    kinds, said = Counter[str](), Counter[str]()
    for index, scene in enumerate(SCENES):
        for qa in asked(scene, index, wording):
            assert "{" not in qa.question
            kinds[qa.kind] += 1
            said.update([qa.answer] if qa.kind == "yes_no" else [])
            check(scene, qa)
        assert asked(scene, index, wording) == asked(scene, index, wording)
    assert set(kinds) == set(KINDS)
    assert set(said) == {"yes", "no"}
    assert 0.35 < said["yes"] / said.total() < 0.6


def check(scene: Scene, qa: QA) -> None:
    """Answers the question from its words, with independent code."""
    text = NAMES.sub(lambda m: CANONICAL[m[1].lower()], qa.question).lower()
    found = re.findall(rf"\b({'|'.join((*THINGS, *COLORS))})\b", re.sub(r"light \w+", "", text))
    things = [word for word in found if word in THINGS]
    colors = [word for word in found if word in COLORS]
    named = [
        one
        for one in scene.objects
        if (not things or one.thing == things[0]) and (not colors or one.color == colors[0])
    ]
    if qa.answer.startswith("there is no "):
        assert qa.kind in ("color", "where")
        assert not named, qa
    elif qa.kind == "color" and things:
        assert {one.color for one in named} == {qa.answer}, qa
    elif qa.kind == "count":
        assert qa.answer == ("none", "one", "two", "three", "four")[len(named)], qa
    elif qa.kind == "where":
        assert [PLACE_PHRASES[place(one)] for one in named] == [qa.answer], qa
    elif qa.kind == "background":
        assert qa.answer == scene.background
    elif qa.kind in ("list", "caption"):
        assert objects_named(qa.answer) == Counter((o.color, o.thing) for o in scene.objects)
    elif qa.kind == "either":
        assert qa.answer in PLACE_PHRASES.values() or re.sub("^an? ", "", qa.answer) in text
    elif qa.kind == "what" and qa.answer == "nothing":
        assert not any(PLACE_PHRASES[place(one)] in text for one in scene.objects), qa
    elif qa.kind == "what":
        assert any(qa.answer.endswith(f" {one.thing}") for one in named), qa
    elif qa.kind == "relation":
        name = next(r for r in ("left", "right", "above", "over", "below", "under") if r in text)
        name = {"over": "above", "under": "below"}.get(name, name)
        (base,) = named
        there = [
            one
            for one in scene.objects
            if one is not base and any(r.startswith(name) for r in relations(one, base))
        ]
        assert [f"{o.color} {o.thing}" for o in there] == [qa.answer.split(" ", 1)[1]], qa


def test_where_and_color_are_not_asked_about_things_without_one_answer() -> None:
    for turn in range(60):
        for qa in asked(CAT_AND_BUSES, turn, "template"):
            if qa.kind in ("where", "relation", "size"):
                assert "bus" not in qa.question


def test_the_description_is_a_sentence_with_size_color_and_place() -> None:
    (qa,) = questions(CAT_AND_BUSES, numpy_rng(0, "q"), ("describe",))
    assert qa.answer == (
        "A large orange cat is at the top left, a small blue bus is at the top right and a medium "
        "blue bus is at the bottom left, on a light blue background."
    )
    assert objects_named(qa.answer) == {("orange", "cat"): 1, ("blue", "bus"): 2}


def things_in(text: str) -> list[str]:
    names = [CANONICAL[name.lower()] for name in NAMES.findall(text)]
    return [name for name in names if name in THINGS]


def test_a_text_names_all_things_before_it_is_asked_about() -> None:
    for index, scene in enumerate(SCENES):
        words, about = text_conversation(scene, numpy_rng(0, "text", index))
        assert set(things_in(words)) == {one.thing for one in scene.objects}, words
        assert words[-2:] in (". ", "! ", "? ")
        assert about
        if "background" not in words:
            assert {"where", "size", "background", "list"}.isdisjoint(qa.kind for qa in about)


def test_a_prompt_is_restated_by_its_meaning_in_the_plainest_words() -> None:
    related = 0
    for index, scene in enumerate(SCENES):
        request = request_of(scene, numpy_rng(0, "request", index))
        qa = restate(request, numpy_rng(0, "restate", index))
        answered = things_in(qa.answer)
        assert sorted(answered) == sorted(group.thing for group in request.groups)
        assert set(things_in(qa.question)) == set(answered)
        if request.relation is None:
            asked_in_order = list(dict.fromkeys(things_in(qa.question)))
            assert list(dict.fromkeys(answered)) == asked_in_order, qa
            continue
        related += 1
        first, name, second = request.relation
        ends = [request.groups[first].thing, request.groups[second].thing]
        assert answered[:2] == (ends if name in ("left of", "above") else ends[::-1])
        assert (" to the left of " if name in ("left of", "right of") else " above ") in qa.answer
    assert related > 15


def test_conversations_hold_six_questions_and_some_small_talk() -> None:
    unknown = set(frames("questions", "say unknown", "template"))
    said = {topic: frames("questions", f"say {topic}", "template")[0] for topic in TOPICS}
    talked, turns, texts = Counter[bool](), Counter[bool](), Counter[bool]()
    for index, scene in enumerate([*SCENES, *SCENES]):
        fields = scene_fields(scene, index, numpy_rng(0, "words", index))
        for key in ("conversations", "text_conversations"):
            questions_ = [turn["value"] for turn in fields[key][::2]]
            answers = [turn["value"] for turn in fields[key][1::2]]
            assert len(set(questions_)) == len(questions_) == len(answers) <= 7
            talked[key == "conversations"] += sum(text in said.values() for text in answers)
            turns[key == "conversations"] += len(answers)
            if key == "text_conversations":
                assert unknown.isdisjoint(answers)
        first = fields["text_conversations"][0]
        texts["context" in first] += 1
        assert first["value"][: first.get("context", 0)][-1:] in ("", " ")
    assert 0.02 < talked[True] / turns[True] < 0.07
    assert 0.02 < talked[False] / turns[False] < 0.07
    assert texts[False] > 0
