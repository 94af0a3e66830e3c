"""Frames of questions and edits: their gaps, their number, and what is held out."""

import re
import string
from collections import Counter

import pytest

from blip3o.core.rng import numpy_rng
from blip3o.data.scenes.edits import sample_edit
from blip3o.data.scenes.export import scene_fields
from blip3o.data.scenes.frames import Wording, frames, kinds
from blip3o.data.scenes.question_forms import FORMS
from blip3o.data.scenes.scene import sample_scene
from blip3o.data.scenes.talk import TOPICS

ALL: tuple[Wording, ...] = ("template", "train", "heldout")
GAPS = {
    "what at": "where",
    "what colored": "color",
    "color of": "name",
    "colors of": "names",
    "color at": "where",
    "count things": "things",
    "count color": "color",
    "where": "name",
    "exists": "a",
    "exist": "things",
    "is color": "name color",
    "is at": "name where",
    "is related": "name relation other",
    "is count": "number things",
    "is background": "background",
    "either color": "name first second",
    "either place": "name first second",
    "either thing": "first second",
    "related": "relation name",
    "size of": "name",
    "wrapper": "question",
    "restate": "words",
    "recolor": "name color",
    "recolor all": "names color",
    "remove": "name",
    "add": "new where",
    "swap": "name new",
    "move": "name where",
}
"""Gaps of the frames of each section; a section that is not here has none."""
SAME = {"a_name": "name", "a_background": "background", "place": "where"}
HARMLESS = {*["another", "its", "let", "my", "we"]}
"""Words without which a sentence means the same, so training need not have them."""
SECTIONS = [(file, kind) for file in ("questions", "edits") for kind in kinds(file)]


def every(file: str, kind: str) -> list[str]:
    return list(dict.fromkeys([text for w in ALL for text in frames(file, kind, w)]))


def is_talk(kind: str) -> bool:
    return kind.startswith(("talk ", "say "))


@pytest.mark.parametrize(("file", "kind"), SECTIONS)
def test_a_frame_has_the_gaps_of_its_section_and_is_written_once(file: str, kind: str) -> None:
    for text in every(file, kind):
        found = Counter(name for _, name, _, _ in string.Formatter().parse(text) if name)
        assert set(found.values()) <= {1}, text
        names = {SAME.get(name, name) for name in found}
        if kind == "talk unknown":
            assert names <= {"name"}
        else:
            assert names == set(GAPS.get(kind, "").split()), text
    plain = [re.sub(r"[^\w{} ]", "", text.lower()).strip() for text in every(file, kind)]
    assert len(plain) == len(set(plain)), kind  # case and marks vary anyway


def test_there_are_hundreds_of_frames_and_a_fifth_is_held_out() -> None:
    sections = [one for one in SECTIONS if not is_talk(one[1])]
    train = sum(len(frames(*one, "train")) for one in sections)
    heldout = sum(len(frames(*one, "heldout")) for one in sections)
    assert train + heldout > 600
    assert 0.13 < heldout / (train + heldout) < 0.23
    forms = {form for kind in FORMS.values() for form in kind}
    asked = {kind for kind in kinds("questions") if not is_talk(kind)}
    assert forms == asked - {"wrapper", "restate"}
    assert len(TOPICS) >= 8
    assert all(len(frames("questions", f"say {topic}", "template")) == 1 for topic in TOPICS)


def test_training_knows_every_word_of_the_heldout_frames() -> None:
    known = Counter[str]()
    for one in SECTIONS:
        for text in frames(*one, "train"):
            known.update(words_of(text))
    for file, kind in SECTIONS:
        if is_talk(kind):
            continue
        for text in frames(file, kind, "heldout"):
            new = [word for word in words_of(text) if known[word] < 2 and word not in HARMLESS]
            assert not new, f"[{kind}] {text}: {new}"


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", re.sub(r"\{\w+\}", " ", text.lower())))


def test_training_never_uses_a_heldout_frame() -> None:
    known, heldout = patterns("train"), patterns("heldout")
    asked = set()
    for index in range(300):
        fields = scene_fields(sample_scene(0, index), index, numpy_rng(0, "words", index))
        for key in ("conversations", "text_conversations"):
            asked.update(turn["value"].split("\n")[-1].split(". ")[-1] for turn in fields[key][::2])
        asked.add(sample_edit(0, index, wording="train").instruction)
    assert len(asked) > 3000
    plain = [text.rstrip(".?!").lower() for text in asked]
    unseen = [text for text in plain if not any(one.fullmatch(text) for one in known)]
    assert not [text for text in unseen if any(one.fullmatch(text) for one in heldout)]


def patterns(wording: Wording) -> list[re.Pattern[str]]:
    return [
        re.compile(".*".join(map(re.escape, re.split(r"\{\w+\}", text.rstrip(".?!").lower()))))
        for file, kind in SECTIONS
        if kind != "wrapper"  # its template is every question
        for text in frames(file, kind, wording)
    ]


def test_every_question_and_edit_has_wordings_that_training_never_uses() -> None:
    for file, kind in SECTIONS:
        if not kind.startswith("say "):
            assert not {*frames(file, kind, "heldout")} & {*frames(file, kind, "train")}, kind
