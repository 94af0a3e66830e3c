import re
from collections import Counter
from importlib import resources

import pytest

from blip3o.core.rng import numpy_rng
from blip3o.data.scenes.captions import caption_texts, group_texts, request_of
from blip3o.data.scenes.frames import frames, kinds
from blip3o.data.scenes.phrasing import Request, worded
from blip3o.data.scenes.prompts import WORDING_CATEGORIES, eval_prompts
from blip3o.data.scenes.scene import sample_groups, sample_pair, sample_scene
from blip3o.data.scenes.synonyms import BACKGROUND_NAMES, COLOR_NAMES, PLURALS, THING_NAMES
from blip3o.data.scenes.things import BACKGROUNDS, COLORS, THINGS, plural
from blip3o.data.scenes.types import Scene, relations
from blip3o.data.scenes.words import Group

# The gaps of the frames of each kind. A frame may have {digit} for {number}, {bg_is} for {bg}.
GAPS = {
    "wrap": "scene",
    "wrap clause": "clause",
    "greeting": "text",
    "ending": "text",
    "beside": "left right",
    "beside clause": "left right",
    "stacked": "upper lower",
    "stacked clause": "upper lower",
    "list 2": "a b",
    "list 3": "a b c",
    "list 4": "a b c d",
    "sentences 2": "a b",
    "sentences 3": "a b c",
    "sentences 4": "a b c d",
    "clause": "things",
    "also": "text rest",
    "also sentence": "rest",
    "placed": "group place",
    "placed clause": "group place",
    "corner": "corner",
    "side": "side",
    "top": "",
    "bottom": "",
    "center": "",
    "background": "scene bg",
    "background sentence": "bg",
    "one": "noun",
    "short one": "noun",
    "only one": "noun",
    "some": "number noun",
    "only some": "number noun",
    "two": "noun",
    "three": "noun",
    "four": "noun",
    "color": "color thing",
    "only color": "color thing",
    "filler": "noun",
}
ALL_FRAMES = {
    kind: dict.fromkeys([*frames("prompts", kind, "train"), *frames("prompts", kind, "heldout")])
    for kind in kinds("prompts")
}
HARMLESS = {
    *("ahead", "clipart", "resolution", "prompt", "content", "evening", "day"),  # courtesy, style
    *("happy", "wonderful", "amazing", "fancy"),  # adjectives that mean nothing in a scene
}
THING_OF = {
    form: (thing, number)
    for thing in THINGS
    for name in (thing, *THING_NAMES.get(thing, ()))
    for form, number in ((name, 1), (plural(name), 2))
} | {name: (thing, 2) for thing, name in PLURALS.items()}
COLOR_OF = {name: color for color in COLORS for name in (color, *COLOR_NAMES[color])}
BACKGROUND_WORDS = {n for bg in BACKGROUNDS for n in (bg, *BACKGROUND_NAMES.get(bg, ()))}
SCENES = [sample_scene(0, index) for index in range(250)]
WIDE = [
    (scene, text)
    for index, scene in enumerate(SCENES)
    for text in caption_texts(scene, numpy_rng(0, "wide", index))
] + [
    (scene, text)
    for index in range(50)
    for scene in [sample_pair(0, index), sample_groups(0, index)]
    for text in group_texts(scene, numpy_rng(0, "wide pairs", index))
]


def any_of(names: object) -> re.Pattern[str]:
    longest_first = sorted(names, key=len, reverse=True)  # pyrefly: ignore
    return re.compile(rf"\b({'|'.join(map(re.escape, longest_first))})\b")


COLOR, THING, BACKGROUND = any_of(COLOR_OF), any_of(THING_OF), any_of(BACKGROUND_WORDS)


def test_every_frame_has_the_gaps_of_its_kind_and_no_frame_occurs_twice() -> None:
    assert set(kinds("prompts")) == set(GAPS)
    assert sum(map(len, ALL_FRAMES.values())) >= 300
    file = resources.files("blip3o.data.scenes") / "frames/prompts.txt"
    lines = [line for line in file.read_text("utf-8").splitlines() if line and line[0] not in "#["]
    assert len(lines) == sum(map(len, ALL_FRAMES.values()))
    for kind, group in ALL_FRAMES.items():
        for frame in group:
            gaps = re.findall(r"\{(\w+)\}", frame)
            named = [{"digit": "number", "bg_is": "bg"}.get(gap, gap) for gap in gaps]
            needed = GAPS[kind].split()
            assert set(named) == set(needed), (kind, frame)
            assert len(named) == len(needed) or "({digit})" in frame, (kind, frame)
            assert not re.search(r"[{}]", re.sub(r"\{\w+(:[^|{}]*\|[^{}]*)?\}", "", frame)), frame


def words_of(frame: str) -> set[str]:
    plain = re.sub(r"\{\w+:([^|]*)\|([^}]*)\}", r" \1 \2 ", re.sub(r"\{\w+\}", " ", frame))
    return set(re.findall(r"[a-z']+", plain.lower()))


def test_every_word_of_a_heldout_frame_occurs_in_training() -> None:
    known = {w for kind in GAPS for f in frames("prompts", kind, "train") for w in words_of(f)}
    for kind, group in ALL_FRAMES.items():
        for frame in group:
            assert words_of(frame) <= known | HARMLESS, (kind, frame)


@pytest.mark.parametrize(
    ("words", "first", "second"),
    [
        ("left of|on the left side of|on the left-hand side of", "left", "right"),
        ("right of|on the right side of|on the right-hand side of", "right", "left"),
        ("above|over|on top of|higher than|higher up than", "upper", "lower"),
        ("below|under|beneath|underneath|lower than|lower down than", "lower", "upper"),
    ],
)
def test_frames_of_relations_name_the_right_ends(words: str, first: str, second: str) -> None:
    found = 0
    for kind in ("beside", "beside clause", "stacked", "stacked clause"):
        for frame in ALL_FRAMES[kind]:
            text = re.sub(r"\{\w+:[^}]*\}", "", frame)
            if match := re.search(rf"\{{(\w+)\}}[^{{}}]*\b(?:{words}) \{{(\w+)\}}", text):
                assert match.groups() == (first, second), frame
                found += 1
            elif match := re.search(rf"\b(?:{words}) \{{(\w+)\}}[^{{}}]*\{{(\w+)\}}", text):
                assert match.groups() == (second, first), frame
                found += 1
    assert found > 12


def test_captions_name_all_objects_with_true_colors_and_the_right_number() -> None:
    for scene, text in WIDE:
        rest = BACKGROUND.sub("", text.lower().replace("-colored", " colored"))
        colors = [COLOR_OF[name] for name in COLOR.findall(rest)]
        assert set(colors) <= {one.color for one in scene.objects}, text
        named = Counter(THING_OF[name] for name in THING.findall(COLOR.sub("", rest)))
        assert named in possible_names(scene, text), text


def possible_names(scene: Scene, text: str) -> list[Counter[tuple[str, int]]]:
    """Returns the things with their grammatical numbers: objects alone, by color or together."""
    looks = Counter((one.thing, one.color) for one in scene.objects)
    things = Counter(one.thing for one in scene.objects)

    def number(thing: str, count: int) -> tuple[str, int]:
        plural_only = {"fish": 2}  # "fish" is its own plural, which the table names last
        return thing, plural_only.get(thing, min(count, 2)) if "fishes" not in text else min(
            count, 2
        )

    return [
        Counter(number(one.thing, 1) for one in scene.objects),
        Counter(number(thing, count) for (thing, _), count in looks.items()),
        Counter(number(thing, count) for thing, count in things.items()),
    ]


def test_relations_and_places_of_requests_are_true() -> None:
    seen = Counter()
    for index, scene in enumerate(SCENES):
        request = request_of(scene, numpy_rng(0, "requests", index))
        assert sum(group.count for group in request.groups) == len(scene.objects)
        if request.relation:
            i, name, j = request.relation
            ends = [
                [o for o in scene.objects if (o.thing, g.color or o.color) == (g.thing, o.color)]
                for g in (request.groups[i], request.groups[j])
            ]
            assert all(name in relations(a, b) for a in ends[0] for b in ends[1])
            seen[name] += 1
    assert set(seen) == {"left of", "right of", "above", "below"}


def test_heldout_frames_are_not_in_training_captions() -> None:
    text = "\n".join(text.lower() for _, text in WIDE)
    train = [frame.lower() for kind in GAPS for frame in frames("prompts", kind, "train")]
    checked = 0
    for kind in ("wrap", "wrap clause"):
        for frame in frames("prompts", kind, "heldout"):
            literal = max(re.split(r"\{\w+\}", frame.lower()), key=len)
            if len(literal) > 12 and not any(literal in other for other in train):
                assert literal not in text, frame
                checked += 1
    assert checked > 20


def test_verbs_articles_and_pronouns_agree() -> None:
    cats = Group(thing="cat", color=None, count=3)
    elephant = Group(thing="elephant", color=None, count=1)
    request = Request(groups=(cats, elephant), relation=(0, "left of", 1))
    for turn in range(500):
        for wording in ("train", "heldout"):
            text = worded(request, numpy_rng(0, "agree", turn), wording).lower()
            assert not re.search(r"\ba elephant|there is (3|three|exactly three)\b", text), text
            assert not re.search(
                r"(^|: |where |which )(three|3) cats (is|has|sits|stands)\b", text
            ), text
            assert not re.search(r"(^|: |where |which )an elephant (are|have|sit|stand)\b", text), (
                text
            )


@pytest.mark.parametrize("category", WORDING_CATEGORIES)
def test_heldout_prompts_are_different_deterministic_and_name_what_they_ask_for(
    category: str,
) -> None:
    prompts = eval_prompts(category, 60, 0, wording="heldout")
    assert prompts == eval_prompts(category, 60, 0, wording="heldout")
    assert len({prompt.prompt for prompt in prompts}) == 60
    for prompt in prompts:
        assert sum(item["count"] for item in prompt.include) <= 4
        rest = COLOR.sub("", BACKGROUND.sub("", prompt.prompt.lower()))
        named = {THING_OF[name][0] for name in THING.findall(rest)}
        assert named == {item["thing"] for item in prompt.include}, prompt.prompt
