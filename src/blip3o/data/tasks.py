"""Tasks make a raw record into something to learn; one function and two table lines each."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from blip3o.core.errors import unknown_name
from blip3o.core.types import IMAGE_MARK, Example, Message, Record

DESCRIBE = "Describe the image in detail."
"""The question a long caption answers."""

TaskFunction = Callable[[Record, np.random.Generator], Example]
"""A task; the generator's draws are keyed by the sample. ValueError if the record does not fit."""

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}


def text_to_image(record: Record, rng: np.random.Generator) -> Example:
    """Draws one of the captions and asks for the record's picture."""
    return Example(
        task="text_to_image", record=record, caption=_caption(record, rng), target_image="image"
    )


def edit(record: Record, rng: np.random.Generator) -> Example:
    """Asks for the target picture, given the source picture and the instruction."""
    del rng
    return Example(
        task="edit",
        record=record,
        caption=_without_mark(_field(record, "instruction", str)),
        prompt_images=("source",),
        target_image="target",
    )


def reconstruct(record: Record, rng: np.random.Generator) -> Example:
    """Asks for the record's picture, given that picture."""
    del rng
    return Example(
        task="reconstruct", record=record, prompt_images=("image",), target_image="image"
    )


def contrastive(record: Record, rng: np.random.Generator) -> Example:
    """Pairs the picture with one of its captions and, where known, its objects."""
    objects = record.fields.get("objects", ())
    if not isinstance(objects, list | tuple) or not all(isinstance(one, dict) for one in objects):
        raise ValueError("'objects' is no list of objects")
    return Example(
        task="contrastive",
        record=record,
        caption=_caption(record, rng),
        target_image="image",
        regions=tuple(objects),
    )


def image_to_text(record: Record, rng: np.random.Generator) -> Example:
    """Learns the answers of the record's conversation, or else its caption."""
    if "conversations" in record.fields:
        messages = _messages(_field(record, "conversations", list))
    else:
        question = Message(role="user", text=f"{IMAGE_MARK}\n{DESCRIBE}")
        messages = (question, Message(role="assistant", text=_caption(record, rng)))
    marks = sum(message.text.count(IMAGE_MARK) for message in messages)
    if marks != 1:
        raise ValueError(f"the conversation has {marks} image marks for one picture")
    return Example(task="image_to_text", record=record, messages=messages, prompt_images=("image",))


def text(record: Record, rng: np.random.Generator) -> Example:
    """Learns the answers of a conversation without pictures."""
    del rng
    return Example(task="text", record=record, messages=_text_messages(record))


def plain_text(record: Record, rng: np.random.Generator) -> Example:
    """Learns the answers of such a conversation where no chat format stands around its turns."""
    del rng
    return Example(task="plain_text", record=record, messages=_text_messages(record))


TASKS: Mapping[str, TaskFunction] = {
    task.__name__: task
    for task in (
        *(text_to_image, edit, reconstruct, contrastive),
        *(image_to_text, text, plain_text),
    )
}

PICTURES: Mapping[str, tuple[str, ...]] = {
    "text_to_image": ("image",),
    "edit": ("source", "target"),
    "reconstruct": ("image",),
    "contrastive": ("image",),
    "image_to_text": ("image",),
    "text": (),
    "plain_text": (),
}
"""Which pictures of a record each task looks at."""


CONVERSATIONS: Mapping[str, str] = {
    "image_to_text": "conversations",
    "text": "text_conversations",
    "plain_text": "text_conversations",
}
"""The field that a conversation of each task is in, unless the mixture names another one."""


def with_conversation(record: Record, task: str, field: str) -> Record:
    """Returns a record whose conversation for a task is the one of another field.

    Raises:
        ValueError: if the record lacks it.
    """
    turns = _field(record, field, list)
    return dataclasses.replace(record, fields={**record.fields, CONVERSATIONS[task]: turns})


def get_task(name: str) -> TaskFunction:
    """Returns the function of a task.

    Args:
        name: a key of `TASKS`.

    Raises:
        UsageError: if the name is unknown.
    """
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return TASKS[name]


def draw_turns(example: Example, max_turns: int, rng: np.random.Generator) -> Example:
    """Returns an example with at most so many of its questions, in a drawn order.

    Args:
        example: a conversation of independent questions and answers.
        max_turns: most questions kept; how many is drawn, too.
        rng: where the draws come from.

    Raises:
        ValueError: if questions and answers do not take turns.
    """
    start = int(example.messages[0].role == "system")
    system, turns = example.messages[:start], example.messages[start:]
    if [turn.role for turn in turns] != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError("questions and answers do not take turns")
    first, texts = turns[0], [turn.text for turn in turns[0::2]]
    texts[0] = first.text[first.context :]
    texts = [text.replace(IMAGE_MARK, "").strip() for text in texts]
    context = first.text[: first.context].replace(IMAGE_MARK, "").lstrip()
    opening = f"{IMAGE_MARK}\n{context}" if example.prompt_images else context
    count = int(rng.integers(1, min(max_turns, len(texts)) + 1))
    messages = list(system)
    for k in rng.permutation(len(texts))[:count].tolist():
        messages += [Message(role="user", text=opening + texts[k]), turns[2 * k + 1]]
        opening = ""  # picture and context stand before the first question, whichever it is
    return dataclasses.replace(example, messages=tuple(messages))


def _caption(record: Record, rng: np.random.Generator) -> str:
    captions = record.fields.get("captions") or [_field(record, "caption", str)]
    if not isinstance(captions, list):
        raise ValueError("'captions' is no list")
    caption = captions[int(rng.integers(len(captions)))]
    if not isinstance(caption, str) or not caption.strip():
        raise ValueError("the caption is empty or no text")
    return _without_mark(caption.strip())


def _without_mark(caption: str) -> str:
    if IMAGE_MARK in caption:  # it would claim a picture that is not there
        raise ValueError(f"{IMAGE_MARK} in a caption or an instruction")
    return caption


def _text_messages(record: Record) -> tuple[Message, ...]:
    messages = _messages(_field(record, "text_conversations", list))
    if any(IMAGE_MARK in message.text for message in messages):
        raise ValueError("an image mark in a conversation without pictures")
    return messages


def _messages(turns: Sequence[Any]) -> tuple[Message, ...]:
    messages = tuple(_message(turn) for turn in turns)
    if messages[-1].role != "assistant":
        raise ValueError("the conversation does not end with an answer")
    return messages


def _message(turn: Any) -> Message:  # noqa: ANN401  (whatever the file holds)
    try:
        role, said = _ROLES[turn["from"]], turn["value"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"a conversation turn is malformed: {error}") from error
    if not isinstance(said, str) or not said.strip():
        raise ValueError("a conversation turn is empty or no text")
    spans, context = turn.get("learn"), turn.get("context", 0)
    if spans is not None and role != "assistant":
        raise ValueError("'learn' of a conversation turn that is no answer")
    if not isinstance(context, int) or not 0 <= context < len(said) or (context and role != "user"):
        raise ValueError(f"'context' of a conversation turn does not fit its text: {context!r}")
    return Message(role=role, text=said, learned=_spans(spans, said), context=context)


def _spans(spans: Any, said: str) -> tuple[tuple[int, int], ...] | None:  # noqa: ANN401
    """Returns which characters of a turn are learned; they must be in order and inside it."""
    if spans is None:
        return None
    try:
        found = tuple((int(start), int(stop)) for start, stop in spans)
    except (TypeError, ValueError) as error:
        raise ValueError(f"'learn' of a conversation turn is malformed: {error}") from error
    ends = [end for span in found for end in span]
    if not found or ends != sorted(set(ends)) or ends[0] < 0 or ends[-1] > len(said):
        raise ValueError(f"'learn' of a conversation turn does not fit its text: {spans}")
    return found


def _field(record: Record, name: str, kind: type) -> Any:  # noqa: ANN401
    value = record.fields.get(name)
    if not isinstance(value, kind) or not value:
        raise ValueError(f"the record has no {name!r}")
    return value
