"""Tasks: the examples that they make from records, and the records that they refuse."""

from typing import Any

import numpy as np
import pytest

from blip3o.core.errors import UsageError
from blip3o.core.types import IMAGE_MARK, Message, Record
from blip3o.data.conversations import draw_turns
from blip3o.data.tasks import IMAGES, TASKS, get_task, make_example

TURNS = [
    {"from": "human", "value": "<image>\nWhat is it?"},
    {"from": "gpt", "value": "a cat"},
    {"from": "human", "value": "Which color?"},
    {"from": "gpt", "value": "red"},
]


def record(**fields: Any) -> Record:
    return Record(key="k", index=0, epoch=0, position=0, source="s", files={}, fields=fields)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_every_task_declares_the_images_it_reads() -> None:
    fields = record(
        caption="a cat", conversations=TURNS, instruction="x", text_conversations=TURNS[2:]
    )
    assert IMAGES["interleaved"] == ()  # any number
    for name in TASKS.keys() - {"interleaved"}:
        example = TASKS[name].make(fields, rng())
        assert example.task == name
        roles = {*example.prompt_images, *filter(None, [example.target_image])}
        assert roles == set(IMAGES[name])


def test_an_unknown_task_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'text_to_imag'; did you mean text_to_image"):
        get_task("text_to_imag")


def test_one_of_the_captions_is_drawn() -> None:
    draws = np.random.default_rng(0)
    many = record(captions=["one", " two "], caption="never")
    drawn = {TASKS["text_to_image"].make(many, draws).messages for _ in range(20)}
    assert drawn == {(Message(role="user", text=text),) for text in ("one", "two")}


def test_a_conversation_becomes_messages() -> None:
    example = TASKS["image_to_text"].make(record(conversations=TURNS), rng())
    assert example.messages[0] == Message(role="user", text="<image>\nWhat is it?")
    assert [message.role for message in example.messages] == ["user", "assistant"] * 2


def test_a_turn_may_mark_its_learned_parts() -> None:
    turns = [TURNS[0], {"from": "gpt", "value": "the cat red", "learn": [[7, 11]]}]
    example = TASKS["image_to_text"].make(record(conversations=turns), rng())
    assert example.messages[1].learned == ((7, 11),)


@pytest.mark.parametrize(
    "spans", [[], [[0, 3], [2, 5]], [[3, 3]], [[-1, 2]], [[0, 6]], [[1]], 3, [["a", "b"]]]
)
def test_marks_that_do_not_fit_are_refused(spans: Any) -> None:
    turns = [TURNS[0], {"from": "gpt", "value": "a cat", "learn": spans}]
    with pytest.raises(ValueError, match="'learn' of a conversation turn"):
        TASKS["image_to_text"].make(record(conversations=turns), rng())


def test_only_answers_are_learned() -> None:
    asked = [{**TURNS[0], "learn": [[0, 3]]}, TURNS[1]]
    with pytest.raises(ValueError, match="'learn' of a conversation turn that is not an answer"):
        TASKS["image_to_text"].make(record(conversations=asked), rng())


@pytest.mark.parametrize("context", [-1, 12, "4", None, 1.0])
def test_a_context_that_does_not_fit_is_refused(context: Any) -> None:
    turns = [{**TURNS[2], "context": context}, TURNS[3]]
    with pytest.raises(ValueError, match="'context' of a conversation turn"):
        TASKS["text"].make(record(text_conversations=turns), rng())


def test_the_context_precedes_the_first_drawn_question() -> None:
    words = "There is a red cat. "
    first = {"from": "human", "value": f"{words}What is it?", "context": len(words)}
    turns = [first, TURNS[1], *TURNS[2:]]
    draws, seen = np.random.default_rng(1), set()
    example = TASKS["text"].make(record(text_conversations=turns), rng())
    assert [message.text for message in example.messages] == [turn["value"] for turn in turns]
    for _ in range(20):
        seen.add(tuple(message.text for message in draw_turns(example, 2, draws).messages))
    one, other = ("What is it?", "a cat"), ("Which color?", "red")
    assert seen == {
        (words + a[0], *a[1:], *b) for a, b in ((one, other), (other, one), (one, ()), (other, ()))
    }
    imaged = [{**first, "value": f"{IMAGE_MARK}\n{words}What is it?", "context": 8 + len(words)}]
    example = TASKS["image_to_text"].make(record(conversations=[*imaged, *turns[1:]]), rng())
    for _ in range(5):
        opening = draw_turns(example, 2, draws).messages[0].text
        assert opening.startswith(f"{IMAGE_MARK}\n{words}W")


def test_a_conversation_may_be_in_another_field() -> None:
    made = make_example(record(drills=TURNS), "image_to_text", rng(), conversation="drills")
    assert made.messages[3].text == "red"
    with pytest.raises(ValueError, match="drills"):
        make_example(record(conversations=TURNS), "image_to_text", rng(), conversation="drills")


def test_a_caption_answers_the_request_to_describe_the_image() -> None:
    example = TASKS["image_to_text"].make(record(caption="a cat"), rng())
    assert example.messages[0].text.startswith(IMAGE_MARK)
    assert example.messages[1] == Message(role="assistant", text="a cat")


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ("text_to_image", {}),
        ("text_to_image", {"caption": "  "}),
        ("text_to_image", {"captions": "a cat"}),
        ("text_to_image", {"captions": {"a": 1}}),
        ("text_to_image", {"captions": [7]}),
        ("contrastive", {"caption": "a", "objects": [3]}),
        ("contrastive", {"caption": "a", "objects": None}),
        ("edit", {"instruction": ""}),
        ("edit", {"instruction": 3}),
        ("image_to_text", {"conversations": []}),
        ("image_to_text", {"conversations": "hello"}),
        ("image_to_text", {"conversations": ["hello"]}),
        ("image_to_text", {"conversations": TURNS[:1]}),
        ("image_to_text", {"conversations": [*TURNS, *TURNS]}),
        ("image_to_text", {"conversations": [TURNS[0], {"from": "gpt", "value": None}]}),
        ("image_to_text", {"conversations": [TURNS[0], {"from": "gpt", "value": " "}]}),
        ("image_to_text", {"conversations": [TURNS[0], {"from": ["x"], "value": "a"}]}),
        ("image_to_text", {"conversations": [TURNS[0], {"from": "judge", "value": "a"}]}),
        ("text", {"text_conversations": TURNS}),
    ],
)
def test_an_unfit_record_is_a_value_error(task: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        TASKS[task].make(record(**fields), rng())


def test_drawn_turns_keep_pairs_and_put_the_image_first() -> None:
    at_the_end = [{"from": "human", "value": "What is it?\n<image>"}, *TURNS[1:]]
    answers = {"What is it?": "a cat", "Which color?": "red"}
    draws = np.random.default_rng(1)
    for turns in (TURNS, at_the_end):
        example = TASKS["image_to_text"].make(record(conversations=turns), rng())
        seen = set()
        for _ in range(20):
            messages = draw_turns(example, 2, draws).messages
            assert messages[0].text.startswith(f"{IMAGE_MARK}\n")
            assert sum(message.text.count(IMAGE_MARK) for message in messages) == 1
            pairs = zip(messages[0::2], messages[1::2], strict=True)
            for question, answer in pairs:
                assert answers[question.text.removeprefix(f"{IMAGE_MARK}\n")] == answer.text
            seen.add(tuple(message.text for message in messages))
        assert len(seen) == 4  # one of two, or both in either order


def test_drawn_turns_keep_the_system_turn_and_must_alternate() -> None:
    system = {"from": "system", "value": "Be brief."}
    example = TASKS["text"].make(record(text_conversations=[system, *TURNS[2:]]), rng())
    assert draw_turns(example, 3, rng()).messages == example.messages
    twice = TASKS["text"].make(record(text_conversations=[TURNS[2], *TURNS[2:]]), rng())
    with pytest.raises(ValueError, match="alternate"):
        draw_turns(twice, 2, rng())


@pytest.mark.parametrize("task", ["text_to_image", "edit", "contrastive"])
def test_a_caption_with_an_image_mark_is_refused(task: str) -> None:
    marked = record(caption=f"a cat {IMAGE_MARK}", instruction=f"{IMAGE_MARK} make it blue")
    with pytest.raises(ValueError, match="in a caption or an instruction"):
        TASKS[task].make(marked, rng())
