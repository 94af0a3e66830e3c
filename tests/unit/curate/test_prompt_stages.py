"""The stages that make prompts: templates, write, mine, decontaminate and scenes."""

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.curate.desk import Desk
from blip3o.curate.draft import Draft, read_drafts, write_drafts
from blip3o.curate.images import ImageStore
from blip3o.curate.models import CurateModel, Reply, Request
from blip3o.curate.stages import STAGES, StageConfig
from blip3o.curate.stages.decontaminate import DecontaminateStage
from blip3o.curate.stages.mine import MineStage
from blip3o.curate.stages.scenes import SceneCheckStage, ScenesStage
from blip3o.curate.stages.templates import TemplatesStage
from blip3o.curate.stages.write import WriteStage, cleaned
from blip3o.data.scenes.render import render
from blip3o.data.scenes.types import Placed, Scene
from blip3o.remote.chat import ChatRequest


class Writer:
    """Answers with prepared replies and keeps the requests."""

    license = "MIT"

    def __init__(self, *replies: Reply) -> None:
        self._replies = replies
        self.requests: list[ChatRequest] = []

    def replies(self, requests: Sequence[Request], stage: str) -> list[Reply]:
        assert stage == "work"
        self.requests += [one for one in requests if isinstance(one, ChatRequest)]
        return list(self._replies)


def desk(folder: Path, model: CurateModel | None = None, seed: int = 0) -> Desk:
    models = {} if model is None else {"writer": model}
    return Desk(stage="work", seed=seed, images=ImageStore(folder / "images"), models=models)


def drafts(*categories: str) -> list[Draft]:
    return [
        Draft(slot=slot, category=one, rank=categories[:slot].count(one))
        for slot, one in enumerate(categories)
    ]


@pytest.mark.parametrize("name", ["templates", "write", "mine", "decontaminate", "scenes"])
def test_table(name: str) -> None:
    assert STAGES.get(name).version >= 1
    assert STAGES.get("scene_check") is SceneCheckStage


# -- templates --


def test_templates_fill_the_chosen_categories_by_slot_and_seed(tmp_path: Path) -> None:
    stage = TemplatesStage(grammar="edits", categories=("add", "text"))
    given = [*drafts("add", "text", "own"), Draft(slot=3, category="add", dropped="why")]
    done = stage.run(given, desk(tmp_path))
    assert done[2:] == given[2:]
    for one in done[:2]:
        assert one.prompt
        assert one.source_prompt
        assert one.steps[0].stage == "work"
        assert one.steps[0].text.startswith("template: ")
    assert done[1].facts["text"] in done[1].prompt
    assert stage.run(given[1:2], desk(tmp_path)) == done[1:2]  # no other draft counts
    assert stage.run(given, desk(tmp_path, seed=1))[0].prompt != done[0].prompt
    write_drafts(tmp_path / "drafts.jsonl", done)
    assert read_drafts(tmp_path / "drafts.jsonl") == done


def test_the_fingerprint_of_templates_is_that_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    stage = TemplatesStage(grammar=str(file))
    with pytest.raises(UsageError, match="no such file"):
        stage.fingerprint()
    file.write_text("categories: {x: [one]}", encoding="utf-8")
    before = stage.fingerprint()
    assert stage.run(drafts("x"), desk(tmp_path))[0].prompt == "one"
    file.write_text("categories: {x: [two]}", encoding="utf-8")
    assert stage.fingerprint() != before
    with pytest.raises(UsageError, match="unknown category"):
        stage.run(drafts("y"), desk(tmp_path))


# -- write --


def answered(text: str) -> Reply:
    return Reply(outcome="answered", text=text, model="m-1", request="k")


def test_write_takes_the_cleaned_answer_and_notes_its_origin(tmp_path: Path) -> None:
    writer = Writer(answered('**Prompt:** "A grey cat."'))
    stage = WriteStage(
        model="writer", instruction="{category}: {prompt}", categories=("x",), temperature=0.5
    )
    given = [Draft(slot=0, category="x", prompt="{category} cat"), *drafts("x", "y")[1:]]
    done = stage.run(given, desk(tmp_path, writer))
    assert writer.requests == [
        ChatRequest(parts=("x: {category} cat",), temperature=0.5, max_tokens=256)
    ]
    assert [one.prompt for one in done] == ["A grey cat.", ""]
    (step,) = done[0].steps
    assert (step.model, step.license, step.request) == ("m-1", "MIT", "k")
    assert done[1] is given[1]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(outcome="refusal", text="I cannot"), "refused: I cannot"),
        (Reply(outcome="empty"), "the answer is empty"),
        (Reply(outcome="cut", text="A cat and"), "the answer was cut"),
        (answered('Prompt: ""'), "the answer is empty"),
        (answered("A sign."), 'the answer leaves out "OPEN"'),
        (
            answered('A sign "OPEN" hangs over a narrow doorway at dusk, lit from above.'),
            "the answer copies the instruction",
        ),
    ],
)
def test_write_drops_drafts_without_a_good_answer(
    reply: Reply, reason: str, tmp_path: Path
) -> None:
    given = [Draft(slot=0, category="x", prompt='a sign that says "OPEN"')]
    (done,) = WriteStage(model="writer").run(given, desk(tmp_path, Writer(reply)))
    assert (done.dropped, done.dropped_by, done.prompt) == (reason, "work", given[0].prompt)
    assert len(done.steps) == 1


def test_words_of_the_draft_itself_are_no_copy(tmp_path: Path) -> None:
    prompt = "a photo of three green cups on a stone bench in a garden"
    assert prompt[:40] in WriteStage(model="writer").instruction
    given = [Draft(slot=0, category="x", prompt=prompt)]
    writer = Writer(answered(prompt))
    (done,) = WriteStage(model="writer").run(given, desk(tmp_path, writer))
    assert not done.dropped


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("A red cat.", "A red cat."),
        ("  'A red cat.' ", "A red cat."),
        ("\u201cA red cat.\u201d", "A red cat."),
        ('"One" and "two"', '"One" and "two"'),
        ('A sign with "GO"', 'A sign with "GO"'),
        ('Prompt: "A sign with \u201cGO\u201d"', "A sign with \u201cGO\u201d"),
        ("Here is your prompt:\n\nA red cat\non a mat.", "A red cat on a mat."),
        ("Sure!\n```text\nA red cat.\n```", "A red cat."),
        ("# Rewritten prompt:\n- **A red cat**", "A red cat"),
        ("1. `A red cat`", "A red cat"),
        ("Here a cat sleeps.", "Here a cat sleeps."),
        ("Its caption: none", "none"),
        ("", ""),
        ('"', ""),
    ],
)
def test_cleaned(answer: str, text: str) -> None:
    assert cleaned(answer) == text


def test_write_refuses_bad_instructions(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown gap of the instruction 'promt'"):
        WriteStage(model="writer", instruction="{promt}")
    with pytest.raises(UsageError, match="needs the gap"):
        WriteStage(model="writer", instruction="{category}")
    with pytest.raises(UsageError, match="unknown model of the run"):
        WriteStage(model="other").run(drafts("x"), desk(tmp_path))


# -- mine --


def test_mine_takes_each_record_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    lines = [json.dumps({"caption": f"caption {number}"}) for number in range(20)]
    file.write_text("\n".join(lines), encoding="utf-8")
    stage = MineStage(data=str(file), license="CC0", category="x")
    given = drafts(*["x"] * 20, "y")
    done = stage.run(given, desk(tmp_path))
    found = [one.prompt for one in done[:20]]
    assert sorted(found) == sorted(f"caption {number}" for number in range(20))
    assert found != [f"caption {number}" for number in range(20)]
    assert done[20] is given[20]
    assert stage.run(given[7:9], desk(tmp_path)) == done[7:9]  # no other unit counts
    assert done[0].steps[0].license == "CC0"
    assert str(file) in done[0].steps[0].text
    assert len(stage.fingerprint()) > 8
    with pytest.raises(UsageError, match="has 20 records, but the plan has more drafts of x"):
        stage.run([Draft(slot=9, category="x", rank=20)], desk(tmp_path))
    with pytest.raises(UsageError, match="need a license"):
        MineStage(data=str(file), license=" ", category="x")


def test_mine_takes_images_too(shards_of_captions: Path, tmp_path: Path) -> None:
    data = str(shards_of_captions / "*.tar")
    done = MineStage(data=data, license="MIT", category="x", uses_image="source").run(
        drafts(*"xxxx"), desk(tmp_path)
    )
    assert {one.source_prompt for one in done} > {"a castle at night", "a moat"}
    assert all(one.source and not one.prompt and not one.image for one in done)
    assert desk(tmp_path).images.open(done[0].source).size == (16, 16)
    (whole,) = MineStage(data=data, license="MIT", category="x", uses_image="image").run(
        drafts("x"), desk(tmp_path)
    )
    assert whole.image == done[0].source
    assert whole.prompt == done[0].source_prompt


def test_mine_drops_drafts_with_bad_records(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"caption": ""}\n{"caption": "no image"}\n', encoding="utf-8")
    done = MineStage(data=str(file), license="MIT", category="x", uses_image="image").run(
        drafts("x", "x"), desk(tmp_path)
    )
    reasons = sorted(one.dropped.rpartition(": ")[2] for one in done)
    assert reasons == ["it has no image", "the caption is empty or not a text"]


# -- decontaminate --


def test_decontaminate_drops_drafts_with_prompts_of_benchmarks(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("a very special walrus on ice\n", encoding="utf-8")
    stage = DecontaminateStage(against=("geneval", f"own={own}"))
    given = [
        Draft(slot=0, category="x", prompt="a lonely castle at night"),
        Draft(slot=1, category="x", prompt="Please draw a bench"),
        Draft(slot=2, category="x", prompt="make it red", source_prompt="a photo of a cow"),
        Draft(slot=3, category="x", prompt="a very special walrus on ice"),
        Draft(slot=4, category="x", prompt="a bench", dropped="why"),
    ]
    done = stage.run(given, desk(tmp_path))
    assert done[0] is given[0]
    assert done[4] is given[4]
    assert done[1].dropped == "repeats a prompt of geneval (meaning): a photo of a bench"
    assert done[2].dropped == "repeats a prompt of geneval (exact): a photo of a cow"
    assert "own (exact)" in done[3].dropped
    assert done[3].dropped_by == "work"
    assert stage.fingerprint() != DecontaminateStage(against=("geneval",)).fingerprint()


# -- scenes --


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def scene(data: dict[str, object]) -> Scene:
    objects = data["objects"]
    assert isinstance(objects, list)
    return Scene(background=str(data["background"]), objects=tuple(Placed(**o) for o in objects))


def made_scenes(task: str, folder: Path) -> list[Draft]:
    stage = ScenesStage(task="edit" if task == "edit" else "text_to_image")
    return stage.run(drafts(*["x"] * 12), desk(folder))


@pytest.mark.parametrize("task", ["text_to_image", "edit"])
def test_scenes_and_their_judge(task: str, tmp_path: Path) -> None:
    place, done = desk(tmp_path), made_scenes(task, tmp_path)
    assert made_scenes(task, tmp_path) == done
    key = "target" if task == "edit" else None
    truths = [scene(dict(one.facts[key] if key else one.facts)) for one in done]
    drawn = [
        dataclasses.replace(one, image=place.images.add(png(render(truth))))
        for one, truth in zip(done, truths, strict=True)
    ]
    write_drafts(tmp_path / "drafts.jsonl", drawn)
    drawn = read_drafts(tmp_path / "drafts.jsonl")
    right = SceneCheckStage().run(drawn, place)
    assert all(one.is_accepted and one.scores == {"scene": 1.0} for one in right)
    assert SceneCheckStage().run(right, place) == right  # not judged twice
    shifted = [
        dataclasses.replace(one, image=other.image)
        for one, other in zip(drawn, [*drawn[1:], drawn[0]], strict=True)
    ]
    wrong = SceneCheckStage().run(shifted, place)
    assert not any(one.is_accepted or one.image for one in wrong)
    assert all(one.failures[0].scores["scene"] < 1 for one in wrong)
    assert "the image shows" in wrong[0].failures[0].reason
    if task == "edit":
        assert all(one.source and one.source_prompt for one in done)
        kept = [dataclasses.replace(one, image=one.source) for one in drawn]
        assert not any(one.is_accepted for one in SceneCheckStage().run(kept, place))


def test_a_lower_limit_accepts_parts(tmp_path: Path) -> None:
    place, (one, *_) = desk(tmp_path), made_scenes("text_to_image", tmp_path)
    image = place.images.add(png(Image.new("RGB", (96, 96), "white")))
    (done,) = SceneCheckStage(least=0.0).run([dataclasses.replace(one, image=image)], place)
    assert done.is_accepted
    assert done.scores["scene"] == 0


def test_scene_check_refuses_other_images_and_drafts(tmp_path: Path) -> None:
    place, (one, *_) = desk(tmp_path), made_scenes("text_to_image", tmp_path)
    wide = place.images.add(png(Image.new("RGB", (96, 64))))
    (done,) = SceneCheckStage().run([dataclasses.replace(one, image=wide)], place)
    assert "square, but the image is 96x64" in done.failures[0].reason
    square = place.images.add(png(Image.new("RGB", (96, 96))))
    with pytest.raises(UsageError, match="has no facts of a scene"):
        SceneCheckStage().run([Draft(slot=0, category="x", image=square)], place)


def test_stages_are_typed() -> None:
    stages: list[StageConfig] = [
        TemplatesStage(grammar="edits"),
        WriteStage(model="writer"),
        MineStage(data="x", license="MIT", category="x"),
        DecontaminateStage(),
        ScenesStage(),
        SceneCheckStage(),
    ]
    for stage in stages:
        assert isinstance(STAGES.get(stage.kind), type)
        assert type(stage) is STAGES.get(stage.kind)
