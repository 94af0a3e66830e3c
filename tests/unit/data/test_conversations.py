"""Conversations in the formats of published data, and the ones that are bad records."""

from typing import Any

import numpy as np
import pytest

from blip3o.core.types import IMAGE_MARK, Example, Message, Record
from blip3o.data.conversations import draw_turns
from blip3o.data.sources.references import image_role
from blip3o.data.tasks import TASKS, likely_tasks, variants
from blip3o.text.chat import ChatTemplate

ASKED = "<image>\nWhat?"
TURNS = [{"from": "human", "value": ASKED}, {"from": "gpt", "value": "red"}]


def record(num_images: int = 1, **fields: Any) -> Record:
    files = {image_role(k): b"" for k in range(num_images)}
    return Record(key="k", index=0, epoch=0, position=0, source="s", files=files, fields=fields)


def learn(task: str, num_images: int = 1, **fields: Any) -> Example:
    return TASKS[task].make(record(num_images, **fields), np.random.default_rng(0))


def talk(num_images: int = 1, **fields: Any) -> tuple[Message, ...]:
    return learn("image_to_text", num_images, **fields).messages


@pytest.mark.parametrize(
    "fields",
    [
        {"conversations": TURNS},
        {"messages": TURNS},
        {"conversation": TURNS},
        {"conversations": [], "messages": TURNS},
        {"conversations": None, "messages": TURNS},
        {
            "conversations": [
                {"from": "user", "value": ASKED},
                {"from": "assistant", "value": "red"},
            ]
        },
        {"conversations": [{"from": "Human", "value": ASKED}, {"from": "GPT", "value": "red"}]},
        {
            "conversations": [
                {"role": "user", "content": ASKED},
                {"role": "assistant", "content": "red"},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
            ]
        },
        {"conversations": [{"from": "human", "value": "What?"}, TURNS[1]]},
        {"conversations": [{"from": "human", "value": "<Image>\nWhat?"}, TURNS[1]]},
        {"conversations": [{"from": "system", "value": ""}, *TURNS]},
        {"conversations": [*TURNS, {"from": "human", "value": "and then?"}]},
        {"conversations": TURNS, "system": " "},
        {
            "conversations": [
                {
                    "from": "human",
                    "value": "<|vision_start|><|image_pad|><|vision_end|>\nWhat?",
                },
                TURNS[1],
            ]
        },
        {"conversations": [{"from": "human", "content": ASKED, "name": "Bob"}, TURNS[1]]},
        {"conversations": TURNS, "video": None, "image_path": ""},
    ],
)
def test_every_form_gives_the_same_conversation(fields: dict[str, Any]) -> None:
    assert talk(**fields) == (
        Message(role="user", text=ASKED),
        Message(role="assistant", text="red"),
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"conversations": [{"from": "system", "value": "Be brief."}, *TURNS]},
        {"conversations": [{"role": "developer", "content": "Be brief."}, *TURNS]},
        {"conversations": TURNS, "system": "Be brief."},
    ],
)
def test_a_system_turn_may_be_in_a_field(fields: dict[str, Any]) -> None:
    assert [message.role for message in talk(**fields)] == ["system", "user", "assistant"]


def test_an_answer_of_weight_0_is_not_learned(chat: ChatTemplate) -> None:
    turns = [TURNS[0], {**TURNS[1], "weight": 0}, TURNS[0], {**TURNS[1], "weight": 1}]
    messages = talk(2, conversations=turns)
    assert [message.learned for message in messages] == [None, (), None, None]
    without, learned = (chat.conversation(some)[1] for some in (messages[:2], messages[2:]))
    assert sum(label >= 0 for label in without) == 1  # the token that ends the turn
    assert sum(label >= 0 for label in learned) > 1


def test_a_conversation_without_images_is_text() -> None:
    example = learn("image_to_text", 0, conversations=[{"from": "human", "value": "Hi"}, TURNS[1]])
    assert example.prompt_images == ()
    assert example.messages[0].text == "Hi"
    assert learn("text", 0, messages=[{"role": "user", "content": "Hi"}, TURNS[1]]).messages


@pytest.mark.parametrize(
    "named",
    [
        {"image": {"<image_00>": "a.png"}},
        {"image": 5},
        {"image": True},
        {"image": float("nan")},
        {"image": "a.png"},  # in a shard without the image
        {"images": [{"width": 3}]},
        {"image_path": "without/an/ending"},
        {"video": "a.mp4"},
        {"videos": ["a.mp4"]},
        {"audio": "a.wav"},
        {"audios": [{"path": "a.wav"}]},
    ],
)
def test_a_conversation_about_an_unread_file_is_a_bad_record(named: dict[str, Any]) -> None:
    turns = [{"from": "human", "value": "What?"}, TURNS[1]]
    with pytest.raises(ValueError, match=f"{next(iter(named))}' was not read"):
        learn("image_to_text", 0, conversations=turns, **named)
    empty = dict.fromkeys(named)
    assert learn("image_to_text", 0, conversations=turns, **empty).prompt_images == ()


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("<image><image>\nDifference?", "<image><image>\nDifference?"),
        ("Is <image> like <image>?", "Is <image> like <image>?"),
        ("Difference?", "<image>\n<image>\nDifference?"),
    ],
)
def test_several_images_have_a_mark_each_in_order(question: str, expected: str) -> None:
    turns = [{"from": "human", "value": question}, TURNS[1]]
    example = learn("image_to_text", 2, conversations=turns)
    assert example.prompt_images == ("image", "image_2")
    assert example.messages[0].text == expected


def test_marks_may_be_in_several_turns() -> None:
    example = learn("image_to_text", 2, conversations=[*TURNS, *TURNS])
    assert example.prompt_images == ("image", "image_2")


def test_a_mark_that_is_added_moves_the_context() -> None:
    first = {"from": "human", "value": "A cat. What?", "context": 7}
    example = learn("image_to_text", conversations=[first, TURNS[1]])
    (asked, _) = draw_turns(example, 1, np.random.default_rng(0)).messages
    assert asked.text == f"{IMAGE_MARK}\nA cat. What?"


def test_drawn_questions_keep_all_images() -> None:
    turns = [{"from": "human", "value": "<image><image>A?"}, TURNS[1]]
    turns += [{"from": "human", "value": "B?"}, TURNS[1]]
    example = learn("image_to_text", 2, conversations=turns)
    for seed in range(6):
        drawn = draw_turns(example, 2, np.random.default_rng(seed)).messages
        assert drawn[0].text.startswith(f"{IMAGE_MARK}\n{IMAGE_MARK}\n")
        assert sum(message.text.count(IMAGE_MARK) for message in drawn) == 2


@pytest.mark.parametrize(
    ("num_images", "turns", "message"),
    [
        (1, [{"from": "human", "value": "<image><image>A?"}, TURNS[1]], "2 image marks for 1"),
        (3, [{"from": "human", "value": "<image><image>A?"}, TURNS[1]], "2 image marks for 3"),
        (0, [{"from": "human", "value": "<image><image>A?"}, TURNS[1]], "2 image marks for 0"),
        (1, [TURNS[0], {"from": "gpt", "value": "see <image>"}], "in a turn of the assistant"),
        (1, [{"from": "system", "value": "<image>"}, *TURNS], "in a turn of the system"),
        (1, [TURNS[0], {"from": "gpt", "value": ""}], "empty or not a text"),
        (1, [TURNS[0], {"from": "gpt", "value": ["red"]}], "neither a text nor an image"),
        (1, [TURNS[0], {"from": "tool", "value": "red"}], "unknown role 'tool'"),
        (1, [TURNS[0], {"from": None, "value": "red"}], "unknown role None"),
        (1, [TURNS[0], {"role": "assistant"}], "it has no 'value' or 'content'"),
        (1, [{"question": "q", "answer": "a"}], "it has no 'from' or 'role'"),
        (1, [["human", "q"], ["gpt", "a"]], "it has no 'from' or 'role'"),
        (1, [None], "it has no 'from' or 'role'"),
        (1, ["q", "a"], "it has no 'from' or 'role'"),
        (1, [{"from": {}, "value": "q"}], "unknown role {}"),
        (1, [TURNS[0], {"from": "gpt", "value": None}], "empty or not a text"),
        (1, [TURNS[0], {"from": "gpt", "value": 3}], "empty or not a text"),
        (1, [TURNS[0], {"from": "gpt", "value": "half \ud83d"}], "half a character"),
        (1, [{"from": "gpt", "value": "red"}], "no question"),
        (1, [TURNS[0]], "does not end with an answer"),
        (1, [{"from": "human", "value": "A?"}, TURNS[1], TURNS[0]], "does not end with an answer"),
        (1, "a text", "not a list"),
        (1, {"from": "gpt"}, "not a list"),
        (
            1,
            [{"role": "user", "content": [{"type": "text", "text": "<image>"}]}, TURNS[1]],
            "in a text part",
        ),
        (
            1,
            [{"role": "user", "content": [{"type": "video"}]}, TURNS[1]],
            "neither a text nor an image",
        ),
    ],
)
def test_an_ambiguous_conversation_is_a_bad_record(
    num_images: int, turns: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        talk(num_images, conversations=turns)


@pytest.mark.parametrize("task", ["text_to_image", "contrastive", "reconstruct", "image_to_text"])
def test_a_caption_belongs_to_one_image(task: str) -> None:
    with pytest.raises(ValueError, match="several images"):
        learn(task, 2, caption="a cat")


@pytest.mark.parametrize("name", ["caption", "text", "prompt", "txt", "Caption", "TEXT", "Prompt"])
def test_a_caption_has_several_names(name: str) -> None:
    assert learn("text_to_image", 1, **{name: " a cat "}).messages[-1].text == "a cat"
    assert learn("text_to_image", 1, **{name: ["a cat"]}).messages[-1].text == "a cat"
    more: dict[str, Any] = {"txt": "not this", name: "a cat", "captions": []}
    assert learn("text_to_image", **more).messages[-1].text == "a cat"


def test_every_caption_of_a_record_can_be_checked() -> None:
    several = record(captions=["a", "", 3])
    assert [one.fields["captions"] for one in variants(several, "text_to_image")] == [
        ["a"],
        [""],
        [3],
    ]
    assert list(variants(several, "edit")) == [several]
    with_talk = record(captions=["a", "b"], conversations=TURNS)
    assert list(variants(with_talk, "image_to_text")) == [with_talk]


@pytest.mark.parametrize(
    ("num_images", "fields", "tasks"),
    [
        (1, {"caption": "a"}, ["text_to_image"]),
        (0, {"caption": "a"}, ["text_to_image"]),
        (1, {"text": "a"}, ["text_to_image"]),
        (1, {"conversations": TURNS}, ["image_to_text"]),
        (1, {"messages": TURNS, "caption": "a"}, ["image_to_text", "text_to_image"]),
        (1, {"messages": TURNS, "text": ["ocr"]}, ["image_to_text"]),
        (2, {"messages": TURNS, "caption": "a"}, ["image_to_text"]),
        (0, {"text_conversations": TURNS}, ["text"]),
        (1, {"instruction": "a"}, ["edit"]),
        (1, {"instruction": "a", "caption": "b"}, ["text_to_image"]),
        (1, {}, []),
    ],
)
def test_likely_tasks_of_a_record(
    num_images: int, fields: dict[str, Any], tasks: list[str]
) -> None:
    assert likely_tasks(record(num_images, **fields)) == tasks
