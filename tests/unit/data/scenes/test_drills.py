"""Drills state each requested fact, and no answer can be guessed without looking."""

import itertools
import re
from collections import Counter
from collections.abc import Callable

import pytest

from blip3o.core.rng import numpy_rng
from blip3o.data.scenes.drills import QA, bare_look_up, colors_of_all, look_ups, one_or_none
from blip3o.data.scenes.questions import questions
from blip3o.data.scenes.scene import sample_pair, sample_scene
from blip3o.data.scenes.text_questions import text_look_ups
from blip3o.data.scenes.things import NUMBER_WORDS, THINGS, plural, with_article
from blip3o.data.scenes.types import Placed, place
from blip3o.data.scenes.words import groups, noun, phrase

THING_OF = {name: thing for thing in THINGS for name in (thing, plural(thing))}
SCENES = [sample_scene(0, index) for index in range(600)]


@pytest.mark.parametrize(
    ("kind", "opening", "fact"),
    [
        ("colors_of", "(What|Which) color are|What is the color of", lambda one: one.color),
        ("places_of", "Where (are|can you see|do you see)", place),
    ],
)
def test_drills_state_a_fact_about_each_requested_thing(
    kind: str, opening: str, fact: Callable[[Placed], str]
) -> None:
    orders, absent = set(), 0
    for index, scene in enumerate(SCENES[:200]):
        for qa in questions(scene, numpy_rng(0, "drill", index), (kind,)):
            names = _asked_for(qa, opening, "the ")
            assert len(names) >= 2
            truth = {one.thing: fact(one) for one in scene.objects}
            stated = [f"the {name} {truth.get(name, 'none')}" for name in names]
            assert qa.answer == "; ".join(stated)
            seen = [k for name in names for k, o in enumerate(scene.objects) if o.thing == name]
            absent += len(seen) < len(names)
            orders.add(seen == sorted(seen))
    assert orders == {True, False}  # the order does not follow from the image
    assert absent > 20


def test_drills_state_whether_each_requested_thing_exists() -> None:
    stated = Counter()
    for index, scene in enumerate(SCENES[:200]):
        there = {o.thing for o in scene.objects} | {noun(o.thing, o.color) for o in scene.objects}
        for qa in questions(scene, numpy_rng(0, "drill", index), ("are_there",)):
            names = _asked_for(qa, "Is there|Can you see", "an? ")
            facts = [(with_article(name), name in there) for name in names]
            assert qa.answer == "; ".join(f"{n} {'yes' if ok else 'no'}" for n, ok in facts)
            stated.update((" " in name, name in there) for name in names)
    assert min(stated[a, b] for a, b in itertools.product((False, True), repeat=2)) > 20


def test_drills_count_each_requested_thing_and_color() -> None:
    stated = Counter()
    for index, scene in enumerate(SCENES[:200]):
        number = Counter(one.thing for one in scene.objects)
        number.update(f"{one.color} things" for one in scene.objects)
        for qa in questions(scene, numpy_rng(0, "drill", index), ("counts_of",)):
            names = _asked_for(qa, "How many", "")
            things = [THING_OF.get(name, name) for name in names]
            assert qa.answer == "; ".join(
                f"{name} {NUMBER_WORDS[number[thing]]}"
                for name, thing in zip(names, things, strict=True)
            )
            stated.update(number[thing] for thing in things)
    assert set(stated) == {0, 1, 2, 3, 4}


def test_half_of_the_things_counted_alone_are_absent() -> None:
    stated = Counter()
    for index, scene in enumerate(SCENES[:200]):
        for qa in questions(scene, numpy_rng(0, "drill", index), ("how_many",)):
            (name,) = _asked_for(qa, "How many", "")
            number = sum(one.thing == THING_OF[name] for one in scene.objects)
            assert qa.answer == NUMBER_WORDS[number]
            stated[number] += 1
    assert 0.4 < stated[0] / stated.total() < 0.6
    assert set(stated) == {0, 1, 2, 3, 4}


def _asked_for(qa: QA, opening: str, article: str) -> list[str]:
    asked = re.sub(f"^({opening}) ", "", qa.question).removesuffix("?")
    asked = re.sub("( are)?( there| in the image)?$", "", asked)
    return [re.sub(f"^{article}", "", part) for part in re.split(r", | and ", asked)]


def test_only_the_name_decides_between_one_and_none() -> None:
    answers: Counter[str] = Counter()
    for index, scene in enumerate(SCENES):
        there = Counter(one.thing for one in scene.objects)
        for qa in one_or_none(scene, numpy_rng(0, "one_or_none", index)):
            thing = next(thing for thing in THINGS if f" {plural(thing)} " in qa.question)
            assert qa.answer == NUMBER_WORDS[there[thing]]
            assert there[thing] <= 1
            if 1 in there.values():
                answers[qa.answer] += 1
    assert answers["one"] / answers.total() == pytest.approx(0.5, abs=0.05)


def test_look_ups_ask_for_colors_by_name_and_for_nothing_else() -> None:
    for index, scene in enumerate(SCENES[:200]):
        colors: dict[str, set[str]] = {}
        for one in scene.objects:
            colors.setdefault(one.thing, set()).add(one.color)
        asked = look_ups(scene, numpy_rng(0, "look_ups", index))
        assert len(asked) == 3
        for qa in asked:
            assert qa.learned is not None
            for fact, (start, stop) in zip(qa.answer.split("; "), qa.learned, strict=True):
                _, name, stated = fact.split(" ", 2)
                assert qa.answer[start:stop] == f" {stated}"
                assert name in qa.question
                known = colors.get(THING_OF[name], {"none"})
                assert set(stated.split(" and ")) == known


def test_all_colors_of_a_scene_are_stated() -> None:
    for index, scene in enumerate(SCENES[:200]):
        qa = colors_of_all(scene, numpy_rng(0, "look_ups", index))
        facts = [fact.split(" ", 2)[1:] for fact in qa.answer.split("; ")]
        assert {THING_OF[name] for name, _ in facts} == {one.thing for one in scene.objects}
        named_looks = {(THING_OF[name], c) for name, stated in facts for c in stated.split(" and ")}
        assert named_looks == {(one.thing, one.color) for one in scene.objects}


def test_a_list_names_every_thing_and_its_answer_every_color() -> None:
    orders = set()
    for index, scene in enumerate(SCENES[:200]):
        words, qa = text_look_ups(scene, numpy_rng(0, "lists", index))
        spans = {phrase(group): words.find(phrase(group)) for group in groups(scene)}
        assert min(spans.values()) >= 0
        assert words.endswith(".")
        assert qa.question == ""
        facts = [fact.split(" ", 2)[1:] for fact in qa.answer.split("; ")]
        named_looks = {
            (THING_OF[name], color) for name, stated in facts for color in stated.split(" and ")
        }
        assert named_looks == {(one.thing, one.color) for one in scene.objects}
        learned = [qa.answer[start:stop] for start, stop in qa.learned or ()]
        assert learned == [f" {stated}" for _, stated in facts]
        orders.add(list(spans.values()) == sorted(spans.values()))
    assert orders == {False, True}


def test_a_bare_look_up_names_each_thing_twice_and_learns_its_color() -> None:
    orders = set()
    for index in range(40):
        pair = sample_pair(0, index)
        words, qa = bare_look_up(pair, numpy_rng(0, "bare", index))
        read = words.split()
        stated = qa.answer.split()
        colors = dict(zip(read[1::2], read[0::2], strict=True))
        assert colors == dict(zip(stated[0::2], stated[1::2], strict=True))
        assert colors == {one.thing: one.color for one in pair.objects}
        assert [qa.answer[a:b] for a, b in qa.learned or ()] == [f" {c}" for c in stated[1::2]]
        assert words[0] == qa.answer[0] == " "  # so words at the start get the same tokens
        orders.add(read[1::2] == stated[0::2])
    assert orders == {False, True}
