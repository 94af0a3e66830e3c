"""Tasks: each converts a record to an example. `TASKS` holds everything specific to a task."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np

from blip3o.core.errors import unknown_name
from blip3o.core.types import IMAGE_MARK, Example, Message, Record
from blip3o.data.captions import captions_of, check_words, draw_caption
from blip3o.data.conversations import draw_turns, messages_of, num_drawn, turns_of, with_marks
from blip3o.data.sources.references import image_role, num_images
from blip3o.text.chat import ChatTemplate

T = TypeVar("T")

DESCRIBE = "Describe the image in detail."
"""The question that a long caption answers."""

Tokens = tuple[list[int], list[int]]
"""Token ids, and labels of the same length; the labels are empty if no text is learned."""
MakeExample = Callable[[Record, np.random.Generator], Example]
MakeTokens = Callable[[ChatTemplate, Sequence[Message], Sequence[int] | None], Tokens]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Everything that depends on the task.

    Args:
        make: converts a record to an example, with random numbers keyed by the sample. Raises
            ValueError if the record does not fit the task.
        tokens: converts the example's messages to tokens. Its last argument is the token count of
            each image; None if every image has the chat template's count.
        target: the output that the model learns: an image, the assistant's text, both in turn, or
            for "match" neither (it learns which caption and image belong together).
        prompt_roles: roles of the images in the prompt. A conversation may have none, or further
            images "image_2", "image_3", ...
        target_role: role of the target image; None if there is none.
        conversation: field that holds the conversation, unless the mixture names another one; None
            for tasks without conversations.
        draws_caption: whether `make` draws one of several captions; in a task with conversations
            it does so only for records without one.
        edits_prompt_image: whether the target is an edited version of the prompt's image, so that
            the generator may take that image as a reference.
        needs_regions: whether batches carry the known objects of the images.
        is_judged: whether the model draws the images itself and a reward judges them, so that
            batches carry `ImageRequest`.
    """

    make: MakeExample
    tokens: MakeTokens
    target: Literal["image", "text", "both", "match"]
    prompt_roles: tuple[str, ...] = ()
    target_role: str | None = None
    conversation: str | None = None
    draws_caption: bool = False
    edits_prompt_image: bool = False
    needs_regions: bool = False
    is_judged: bool = False

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of all images, each once: those of the prompt, then the target."""
        target = () if self.target_role is None else (self.target_role,)
        return tuple(dict.fromkeys(self.prompt_roles + target))

    @property
    def pads_left(self) -> bool:
        """Whether short rows are padded on the left.

        A prompt for an image must end in the last column, because the query tokens follow it.
        """
        return self.target == "image"


def _user(words: str) -> tuple[Message, ...]:
    return (Message(role="user", text=words),)


def text_to_image(record: Record, rng: np.random.Generator) -> Example:
    """Returns a request for the record's image by one of its captions, drawn at random."""
    return Example(
        task="text_to_image",
        record=record,
        messages=_user(draw_caption(record.fields, rng)),
        target_image=_only_image(record),
    )


def rollout(record: Record, rng: np.random.Generator) -> Example:
    """Returns a request for images by one of the record's captions; the record needs no image."""
    return Example(task="rollout", record=record, messages=_user(draw_caption(record.fields, rng)))


def edit(record: Record, rng: np.random.Generator) -> Example:
    """Returns a request for the target image, given the source image and the instruction."""
    del rng
    instruction = _checked(record.fields, "instruction", str)
    check_words(instruction)
    return Example(
        task="edit",
        record=record,
        messages=_user(instruction),
        prompt_images=("source",),
        target_image="target",
    )


def reconstruct(record: Record, rng: np.random.Generator) -> Example:
    """Returns a request for the record's image, given that image."""
    del rng
    image = _only_image(record)
    return Example(
        task="reconstruct",
        record=record,
        messages=_user(""),  # the chat template has all the words
        prompt_images=(image,),
        target_image=image,
    )


def contrastive(record: Record, rng: np.random.Generator) -> Example:
    """Returns the image with one of its captions and its known objects, if any."""
    objects = record.fields.get("objects", ())
    if not isinstance(objects, list | tuple) or not all(isinstance(one, dict) for one in objects):
        raise ValueError("'objects' is not a list of objects")
    return Example(
        task="contrastive",
        record=record,
        messages=_user(draw_caption(record.fields, rng)),
        target_image=_only_image(record),
        regions=tuple(objects),
    )


def image_to_text(record: Record, rng: np.random.Generator) -> Example:
    """Returns the record's conversation, or a question that its caption answers.

    A conversation is about all images of its record, or about none.
    """
    turns = turns_of(record.fields)
    if turns is None:
        images = (_only_image(record),)
        question = Message(role="user", text=f"{IMAGE_MARK}\n{DESCRIBE}")
        messages = (question, Message(role="assistant", text=draw_caption(record.fields, rng)))
    else:
        messages = messages_of(_checked({"conversations": turns}, "conversations", list))
        messages = with_marks(messages, num_images(record.files))
        images = _marked_images(record, messages)
    return Example(task="image_to_text", record=record, messages=messages, prompt_images=images)


def _marked_images(record: Record, messages: Sequence[Message]) -> tuple[str, ...]:
    """Returns the role of the image of each mark."""
    num_marks = sum(message.text.count(IMAGE_MARK) for message in messages)
    unread = next((name for name in _MEDIA if record.fields.get(name)), None)
    if not num_marks and unread is not None:
        raise ValueError(
            f"the file named in the record's field {unread!r} was not read, and the conversation "
            "may be about it"
        )
    return tuple(image_role(number) for number in range(num_marks))


def interleaved(record: Record, rng: np.random.Generator) -> Example:
    """Returns the record's conversation, whose answers hold images; each image has its mark.

    An image of an answer is drawn by the model. At least one of them must be learned.
    """
    del rng
    turns = _checked({"conversations": turns_of(record.fields)}, "conversations", list)
    messages = messages_of(turns, draws=True)
    images, num_given = _marked_images(record, messages), num_images(record.files)
    if num_given not in (0, len(images)):  # 0: reported later, when the first image is read
        raise ValueError(f"the conversation has {len(images)} image marks for {num_given} images")
    if not any(map(_is_drawing_learned, messages)):
        raise ValueError("no answer of the conversation holds an image to learn")
    return Example(task="interleaved", record=record, messages=messages, prompt_images=images)


def _is_drawing_learned(message: Message) -> bool:
    if message.role != "assistant" or message.learned is None:
        return message.role == "assistant" and IMAGE_MARK in message.text
    return any(IMAGE_MARK in message.text[slice(*span)] for span in message.learned)


def text(record: Record, rng: np.random.Generator) -> Example:
    """Returns a conversation without images."""
    del rng
    return Example(task="text", record=record, messages=_text_messages(record))


def _request(words: Callable[[ChatTemplate, str], Sequence[Message]]) -> MakeTokens:
    """Returns a function that puts the chat template's words around a request for an image."""

    def tokens(chat: ChatTemplate, messages: Sequence[Message], _: Sequence[int] | None) -> Tokens:
        return chat.image_prompt(words(chat, messages[-1].text)), []

    return tokens


def _bare(chat: ChatTemplate, messages: Sequence[Message], _: Sequence[int] | None) -> Tokens:
    return chat.tokenizer.encode(messages[-1].text, allow_special=False), []


TASKS: Mapping[str, Task] = {
    "text_to_image": Task(
        make=text_to_image,
        tokens=_request(ChatTemplate.generate_messages),
        target="image",
        target_role="image",
        draws_caption=True,
    ),
    "rollout": Task(
        make=rollout,
        tokens=_request(ChatTemplate.generate_messages),
        target="image",
        draws_caption=True,
        is_judged=True,
    ),
    "edit": Task(
        make=edit,
        tokens=_request(ChatTemplate.edit_messages),
        target="image",
        prompt_roles=("source",),
        target_role="target",
        edits_prompt_image=True,
    ),
    "reconstruct": Task(
        make=reconstruct,
        tokens=_request(lambda chat, _: chat.reconstruct_messages()),
        target="image",
        prompt_roles=("image",),
        target_role="image",
    ),
    "contrastive": Task(
        make=contrastive,
        tokens=_bare,
        target="match",
        target_role="image",
        draws_caption=True,
        needs_regions=True,
    ),
    "image_to_text": Task(
        make=image_to_text,
        tokens=ChatTemplate.conversation,
        target="text",
        prompt_roles=("image",),
        conversation="conversations",
        draws_caption=True,
    ),
    "interleaved": Task(
        make=interleaved,
        tokens=functools.partial(ChatTemplate.conversation, draws=True),
        target="both",
        conversation="conversations",
    ),
    "text": Task(
        make=text,
        tokens=ChatTemplate.conversation,
        target="text",
        conversation="text_conversations",
    ),
}

IMAGES = {name: task.roles for name, task in TASKS.items()}
"""Roles of the images that each task reads from every record; `interleaved` reads any number."""
CONVERSATIONS = {name: task.conversation for name, task in TASKS.items() if task.conversation}
"""Field of the conversation of each task that has one."""


def get_task(name: str) -> Task:
    """Returns the task of a name; UsageError if the name is unknown."""
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return TASKS[name]


def make_example(
    record: Record,
    task: str,
    rng: np.random.Generator,
    *,
    conversation: str | None = None,
    max_turns: int | None = None,
) -> Example:
    """Returns the example of a record, with the options of a mixture entry.

    Args:
        record: any record.
        task: a key of `TASKS`.
        rng: source of all random choices.
        conversation: field that holds the conversation, for tasks that have one; None for the
            task's own field.
        max_turns: largest number of questions kept, for tasks with conversations; None keeps all.

    Raises:
        ValueError: if the record does not fit the task.
    """
    entry = TASKS[task]
    if entry.conversation is None:
        return entry.make(record, rng)
    if conversation is not None:
        turns = _checked(record.fields, conversation, list)
        fields = {**record.fields, entry.conversation: turns}
        record = dataclasses.replace(record, fields=fields)
    example = entry.make(record, rng)
    return example if max_turns is None else draw_turns(example, max_turns, rng)


def variants(record: Record, task: str) -> Iterator[Record]:
    """Yields one record for each caption that the task may draw from a record."""
    entry = TASKS[task]
    captions = captions_of(record.fields) or []
    has_turns = entry.conversation is not None and turns_of(record.fields) is not None
    if not entry.draws_caption or has_turns or len(captions) < 2:
        yield record
        return
    for caption in captions:
        yield dataclasses.replace(record, fields={**record.fields, "captions": [caption]})


def likely_tasks(record: Record) -> list[str]:
    """Returns the tasks that a record is probably meant for, judged by its files and fields."""
    files, fields = record.files, record.fields
    found = ["edit"] * ("source" in files and "target" in files)
    if turns_of(fields) is not None:
        found.append("interleaved" if num_drawn(turns_of(fields)) else "image_to_text")
    found += ["text"] * bool(fields.get("text_conversations"))
    # In a record with a conversation, the fields `text` and `prompt` may hold anything.
    is_named_caption = bool(fields.get("captions")) or fields.get("caption") is not None
    is_captioned = not found or (is_named_caption and num_images(record.files) == 1)
    if captions_of(fields) is not None and is_captioned:
        found.append("text_to_image")
    if not found and fields.get("instruction"):  # only edits have this field
        found.append("edit")
    return found


def _text_messages(record: Record) -> tuple[Message, ...]:
    field = "text_conversations"
    turns = record.fields.get(field) or turns_of(record.fields)
    messages = messages_of(_checked({field: turns}, field, list))
    if any(IMAGE_MARK in message.text for message in messages):
        raise ValueError("an image mark in a conversation without images")
    return messages


def _only_image(record: Record) -> str:
    if image_role(1) in record.files:
        raise ValueError("the record has several images; a caption belongs to one")
    return image_role(0)


def _checked(fields: Mapping[str, object], name: str, kind: type[T]) -> T:
    """Returns a field that must be present, not empty, and of a type."""
    value = fields.get(name)
    if not value:
        raise ValueError(f"the record has no {name!r}")
    if not isinstance(value, kind):
        raise ValueError(f"{name!r} of the record is not a {_WORDS[kind]}")
    return value


_MEDIA = (
    *("image", "images", "image_path", "img_path", "image_file"),
    *("video", "videos", "audio", "audios"),
)
"""Fields that stay in a record only if the file they name was not read."""
_WORDS: Mapping[type, str] = {str: "text", list: "list"}
