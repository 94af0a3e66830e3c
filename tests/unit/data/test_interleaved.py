"""Rows of text and images in turn: from records to batches."""

import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.core.types import IGNORE_LABEL, Message, Record
from blip3o.data.collate import Preparer, collate
from blip3o.data.lint import LintChecks, lint
from blip3o.data.loader import Loader
from blip3o.data.mixture import MixtureEntry
from blip3o.data.sources.jsonl import JsonlConfig
from blip3o.data.sources.webdataset import WebDatasetConfig
from blip3o.data.stats import collect
from blip3o.data.tasks import TASKS, likely_tasks
from blip3o.text.chat import ChatTemplate
from blip3o.text.tokenizer import IMAGE_PAD, IMAGE_START, TURN_END, VISION_END, VISION_START

MakeLoader = Callable[..., Loader]
WriteTar = Callable[[Path, Mapping[str, bytes]], None]

EDITS = [
    {"from": "human", "value": "<image>\nmake it blue"},
    {"from": "gpt", "value": "<image>"},
    {"from": "human", "value": "add a cat"},
    {"from": "gpt", "value": "sure <image> a cat"},
]


def record(turns: Any = EDITS, num_images: int = 3, **fields: Any) -> Record:
    roles = ["image", *(f"image_{number}" for number in range(2, num_images + 1))]
    return Record(
        key="k",
        index=7,
        epoch=1,
        position=0,
        source="s",
        files={role: png(10 * k) for k, role in enumerate(roles[:num_images])},
        fields={"conversations": turns, **fields},
    )


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level, 0, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def make(one: Record) -> Any:
    return TASKS["interleaved"].make(one, np.random.default_rng(0))


def test_a_row_holds_its_images_where_they_stand(chat: ChatTemplate, preparer: Preparer) -> None:
    row = preparer.prepare(make(record()))
    special = chat.tokenizer.special_id
    places = row.places
    assert [(one.length, one.is_drawn, one.is_target) for one in places] == [
        (2, False, False),
        (2, True, True),
        (2, True, True),
    ]
    assert [one.before_text for one in places] == [True, True, True]
    begins = [row.ids[one.start - 1] for one in places]
    assert begins == [special(VISION_START), special(IMAGE_START), special(IMAGE_START)]
    for one in places:
        assert row.ids[one.start : one.start + 2] == [special(IMAGE_PAD)] * 2
        assert row.ids[one.start + 2] == special(VISION_END)
    learned = [one for one in row.labels if one != IGNORE_LABEL]
    mark, end = special(IMAGE_START), special(TURN_END)
    encode = chat.tokenizer.encode
    assert learned == [mark, end, *encode("sure "), mark, *encode(" a cat"), end]
    assert all(label in (IGNORE_LABEL, one) for label, one in zip(row.labels, row.ids, strict=True))


def test_a_row_begins_like_the_prompts_of_drawing_and_answering(chat: ChatTemplate) -> None:
    """So a model that learns from rows can be asked in either way."""
    messages = (Message(role="user", text="draw a cat"), Message(role="assistant", text="<image>"))
    ids, labels = chat.conversation(messages, draws=True)
    prompt = chat.image_prompt(messages[:1])
    assert ids[: len(prompt)] == prompt
    assert ids[: len(prompt) - 1] == chat.text_prompt(messages[:1])
    (place,) = chat.image_places(ids, labels)
    assert place.start == len(prompt)
    assert ids[place.start :][:3] == chat.drawn_image(2)
    assert not place.before_text  # only the end of the turn is learned after it


def test_headers_are_never_learned_in_rows_with_drawn_images(chat: ChatTemplate) -> None:
    whole = ChatTemplate(
        chat.tokenizer, dataclasses.replace(chat.config, learn_whole_turns=True), 2
    )
    messages = make(record()).messages
    assert whole.conversation(messages, draws=True) == chat.conversation(messages, draws=True)


def test_losses_are_only_where_they_are_asked_for(preparer: Preparer) -> None:
    first = {**EDITS[1], "weight": 0}
    words = {**EDITS[3], "learn": [[13, 18]]}
    image = {**EDITS[3], "learn": [[5, 12]]}
    kinds = []
    for turns in ([EDITS[0], first, *EDITS[2:]], [*EDITS[:3], words], [*EDITS[:3], image]):
        row = preparer.prepare(make(record(turns)))
        kinds.append([(one.is_target, one.before_text) for one in row.places[1:]])
    assert kinds == [
        [(False, True), (True, True)],
        [(True, True), (False, True)],
        [(True, False), (True, False)],
    ]


def test_several_source_images_and_parts_of_messages(preparer: Preparer) -> None:
    image = {"type": "image"}
    turns = [
        {"role": "user", "content": [image, image, {"type": "text", "text": "put both in one"}]},
        {"role": "assistant", "content": [image, {"type": "text", "text": "done"}]},
    ]
    row = preparer.prepare(make(record(turns)))
    assert [one.is_target for one in row.places] == [False, False, True]
    assert row.example.prompt_images == ("image", "image_2", "image_3")


def test_a_batch_holds_all_images_in_row_order(preparer: Preparer) -> None:
    short = record(EDITS[:2], 2)
    rows = [preparer.prepare(make(one)) for one in (record(), short)]
    batch = collate(rows, preparer.chat.tokenizer.pad_id)
    assert batch.places == (rows[0].places, rows[1].places)
    assert isinstance(batch.prompt_pixels, torch.Tensor)
    levels = ((batch.prompt_pixels[:, 0, 0, 0] + 1) / 2 * 255).round().tolist()
    assert levels == [0, 10, 20, 0, 10]
    assert batch.labels is not None
    assert batch.attention_mask[1].tolist() == [
        k < len(rows[1].ids) for k in range(len(rows[0].ids))
    ]
    assert isinstance(batch.to(torch.device("cpu")).places, tuple)


@pytest.mark.parametrize(
    ("turns", "num_images", "message"),
    [
        (EDITS, 2, "3 image marks for 2 images"),
        (EDITS[:2], 3, "2 image marks for 3 images"),
        ([EDITS[0], {"from": "gpt", "value": "no"}], 1, "no answer .* holds an image to learn"),
        ([EDITS[0], {**EDITS[1], "weight": 0}], 2, "no answer .* holds an image to learn"),
        ([EDITS[0], {**EDITS[1], "learn": [[2, 7]]}], 2, "cuts an image mark"),
        ([{"from": "system", "value": "<image>"}, *EDITS], 4, "only user turns and answers may"),
        ([EDITS[1]], 0, "no image 'image'"),
        (None, 1, "no 'conversations'"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_in_one_line(
    preparer: Preparer, turns: Any, num_images: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        preparer.prepare(make(record(turns, num_images)))


def test_turns_that_build_on_each_other_are_not_drawn() -> None:
    source = JsonlConfig(path="d.jsonl", name="d")
    with pytest.raises(ValueError, match="max_turns is for independent questions"):
        MixtureEntry(source=source, task="interleaved", max_turns=2)


@pytest.mark.parametrize("kind", ["jsonl", "webdataset"])
def test_records_of_lists_and_of_shards_become_the_same_batches(
    tmp_path: Path, write_tar: WriteTar, make_loader: MakeLoader, preparer: Preparer, kind: str
) -> None:
    one = record()
    if kind == "jsonl":
        names = [f"{role}.png" for role in one.files]
        for name, data in zip(names, one.files.values(), strict=True):
            (tmp_path / name).write_bytes(data)
        lines = [json.dumps({"id": str(k), "images": names, **one.fields}) + "\n" for k in range(4)]
        (tmp_path / "d.jsonl").write_text("".join(lines))
        source: Any = JsonlConfig(path=f"{tmp_path}/d.jsonl", name="d")
    else:
        members = {}
        for k in range(4):
            for role, data in one.files.items():
                members[f"{k}.{role}.png".replace(".image.", ".")] = data
            members[f"{k}.json"] = json.dumps(one.fields).encode()
        write_tar(tmp_path / "d.tar", members)
        source = WebDatasetConfig(path=f"{tmp_path}/d.tar", name="d")
    loader = make_loader(mixture=(MixtureEntry(source=source, task="interleaved"),))
    batches = next(loader(0))
    assert loader.num_bad == 0
    expected = preparer.prepare(make(one))
    assert [len(batch) for batch in batches] == [2, 2, 2]
    for batch in batches:
        assert batch.input_ids.tolist() == [expected.ids] * 2
        assert batch.places == (expected.places,) * 2
        assert isinstance(batch.prompt_pixels, torch.Tensor)
        assert len(batch.prompt_pixels) == 6

    path = str(source.path)
    assert lint([path], LintChecks(preparer=preparer, min_px=1)).num_bad == 0
    assert "drawn_images" in collect(path).text()
    assert collect(path).measures["drawn_images"].tolist() == [2.0] * 4


def test_lint_takes_images_in_answers_for_rows_and_names_what_is_wrong(
    tmp_path: Path, preparer: Preparer
) -> None:
    assert likely_tasks(record()) == ["interleaved"]
    assert likely_tasks(record([EDITS[0], {"from": "gpt", "value": "a cat"}], 1)) == [
        "image_to_text"
    ]
    row = {"images": ["a.png", "b.png"], "conversations": EDITS}
    for name in row["images"]:
        (tmp_path / str(name)).write_bytes(png(9))
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")
    report = lint([f"{tmp_path}/d.jsonl"], LintChecks(preparer=preparer, min_px=1))
    problems = [(one.problem, one.detail) for one in report.findings if one.problem != "odd image"]
    assert (
        "unfit for interleaved",
        "the conversation has 3 image marks for 2 images",
    ) in problems


def test_answers_of_other_tasks_still_hold_no_images(chat: ChatTemplate) -> None:
    messages = (Message(role="user", text="x"), Message(role="assistant", text="<image>"))
    with pytest.raises(UsageError, match="images belong in user turns"):
        chat.conversation(messages)
    with pytest.raises(UsageError, match="images belong in user turns"):
        chat.text_prompt((*messages, messages[0]))
