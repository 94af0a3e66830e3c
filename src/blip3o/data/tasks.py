"""Tasks make a raw record into something to learn; one function and two table lines each."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from blip3o.core.errors import unknown_name
from blip3o.core.types import IMAGE_MARK, Example, Message, Record
from blip3o.data.captions import captions_of
from blip3o.data.conversations import check_text, messages_of, turns_of, with_marks
from blip3o.data.sources.references import image_role

DESCRIBE = "Describe the image in detail."
"""The question a long caption answers."""

TaskFunction = Callable[[Record, np.random.Generator], Example]
"""A task; the generator's draws are keyed by the sample. ValueError if the record does not fit."""


def text_to_image(record: Record, rng: np.random.Generator) -> Example:
    """Draws one of the captions and asks for the record's image."""
    return Example(
        task="text_to_image",
        record=record,
        caption=_caption(record, rng),
        target_image=_the_image(record),
    )


def edit(record: Record, rng: np.random.Generator) -> Example:
    """Asks for the target image, given the source image and the instruction."""
    del rng
    return Example(
        task="edit",
        record=record,
        caption=_without_mark(_field(record, "instruction", str)),
        prompt_images=("source",),
        target_image="target",
    )


def reconstruct(record: Record, rng: np.random.Generator) -> Example:
    """Asks for the record's image, given that image."""
    del rng
    image = _the_image(record)
    return Example(task="reconstruct", record=record, prompt_images=(image,), target_image=image)


def contrastive(record: Record, rng: np.random.Generator) -> Example:
    """Pairs the image with one of its captions and, where known, its objects."""
    objects = record.fields.get("objects", ())
    if not isinstance(objects, list | tuple) or not all(isinstance(one, dict) for one in objects):
        raise ValueError("'objects' is no list of objects")
    return Example(
        task="contrastive",
        record=record,
        caption=_caption(record, rng),
        target_image=_the_image(record),
        regions=tuple(objects),
    )


def image_to_text(record: Record, rng: np.random.Generator) -> Example:
    """Learns the answers of the record's conversation, or else its caption.

    A conversation is about all images of its record, or about none.
    """
    turns = turns_of(record.fields)
    if turns is None:
        image = _the_image(record)
        question = Message(role="user", text=f"{IMAGE_MARK}\n{DESCRIBE}")
        messages = (question, Message(role="assistant", text=_caption(record, rng)))
        return _talk(record, messages, (image,))
    messages = messages_of(_checked(turns, "conversations", list))
    messages = with_marks(messages, _num_images(record))
    marks = sum(message.text.count(IMAGE_MARK) for message in messages)
    unread = next((name for name in _MEDIA if record.fields.get(name)), None)
    if not marks and unread is not None:
        raise ValueError(
            f"the record names something in {unread!r} that is not read, and its conversation may "
            "be about that"
        )
    return _talk(record, messages, tuple(image_role(k) for k in range(marks)))


def _talk(record: Record, messages: tuple[Message, ...], images: tuple[str, ...]) -> Example:
    return Example(task="image_to_text", record=record, messages=messages, prompt_images=images)


def text(record: Record, rng: np.random.Generator) -> Example:
    """Learns the answers of a conversation without images."""
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

IMAGES: Mapping[str, tuple[str, ...]] = {
    "text_to_image": ("image",),
    "edit": ("source", "target"),
    "reconstruct": ("image",),
    "contrastive": ("image",),
    "image_to_text": ("image",),
    "text": (),
    "plain_text": (),
}
"""Which images of a record each task looks at; a conversation may be about more, or none."""


CONVERSATIONS: Mapping[str, str] = {
    "image_to_text": "conversations",
    "text": "text_conversations",
    "plain_text": "text_conversations",
}
"""The field that a conversation of each task is in, unless the mixture names another one."""
_DRAWN = ("text_to_image", "contrastive")


def with_conversation(record: Record, task: str, field: str) -> Record:
    """Returns a record whose conversation for a task is the one of another field.

    Raises:
        ValueError: if the record lacks it.
    """
    turns = _field(record, field, list)
    return dataclasses.replace(record, fields={**record.fields, CONVERSATIONS[task]: turns})


def variants(record: Record, task: str) -> Iterator[Record]:
    """Yields the records of one caption each that a task's draws may choose from.

    Args:
        record: a record, perhaps with several captions.
        task: a key of `TASKS`.
    """
    captions = captions_of(record.fields) or []
    is_drawn = task in _DRAWN or (task == "image_to_text" and turns_of(record.fields) is None)
    if not is_drawn or len(captions) < 2:
        yield record
        return
    for caption in captions:
        yield dataclasses.replace(record, fields={**record.fields, "captions": [caption]})


def likely_tasks(record: Record) -> list[str]:
    """Returns the tasks that a record seems to be meant for, by what it holds.

    Args:
        record: any record.
    """
    files, fields = record.files, record.fields
    found = ["edit"] * ("source" in files and "target" in files)
    found += ["image_to_text"] * (turns_of(fields) is not None)
    found += ["text"] * bool(fields.get("text_conversations"))
    # Beside a conversation, `text` or `prompt` may be anything.
    is_said = fields.get("captions") or fields.get("caption") is not None
    if captions_of(fields) is not None and (not found or (is_said and _num_images(record) == 1)):
        found.append("text_to_image")
    if not found and fields.get("instruction"):  # which only edits have
        found.append("edit")
    return found


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
    opening = f"{IMAGE_MARK}\n" * len(example.prompt_images) + context
    count = int(rng.integers(1, min(max_turns, len(texts)) + 1))
    messages = list(system)
    for k in rng.permutation(len(texts))[:count].tolist():
        messages += [Message(role="user", text=opening + texts[k]), turns[2 * k + 1]]
        opening = ""  # images and context stand before the first question, whichever it is
    return dataclasses.replace(example, messages=tuple(messages))


def _caption(record: Record, rng: np.random.Generator) -> str:
    captions = captions_of(record.fields)
    if captions is None:
        raise ValueError("the record has no 'caption'")
    if not captions:
        raise ValueError("'captions' is no list")
    caption = captions[int(rng.integers(len(captions)))]
    if not isinstance(caption, str) or not caption.strip():
        raise ValueError("the caption is empty or no text")
    return _without_mark(caption.strip())


def _without_mark(caption: str) -> str:
    if IMAGE_MARK in caption:  # it would claim an image that is not there
        raise ValueError(f"{IMAGE_MARK} in a caption or an instruction")
    check_text(caption)
    return caption


def _text_messages(record: Record) -> tuple[Message, ...]:
    turns = record.fields.get("text_conversations") or turns_of(record.fields)
    messages = messages_of(_checked(turns, "text_conversations", list))
    if any(IMAGE_MARK in message.text for message in messages):
        raise ValueError("an image mark in a conversation without images")
    return messages


def _the_image(record: Record) -> str:
    """Returns the role of the one image of a record."""
    if image_role(1) in record.files:
        raise ValueError("the record has several images; a caption belongs to one")
    return image_role(0)


def _num_images(record: Record) -> int:
    return next(k for k in itertools.count() if image_role(k) not in record.files)


def _field(record: Record, name: str, kind: type) -> Any:  # noqa: ANN401
    return _checked(record.fields.get(name), name, kind)


def _checked(value: Any, name: str, kind: type) -> Any:  # noqa: ANN401
    if not value:
        raise ValueError(f"the record has no {name!r}")
    if not isinstance(value, kind):
        raise ValueError(f"{name!r} of the record is no {_WORDS[kind]}")
    return value


_MEDIA = (
    *("image", "images", "image_path", "img_path", "image_file"),
    *("video", "videos", "audio", "audios"),
)
"""Fields that are left in a record only if what they name was not read."""
_WORDS: Mapping[type, str] = {str: "text", list: "list"}
