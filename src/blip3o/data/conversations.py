r"""Reads conversations in the formats of published data sets. Image marks stand for the images.

    {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a cat"}
    {"role": "user", "content": "..."}, {"role": "assistant", "content": [{"type": "text", ...}]}

Images without a mark are placed before the first question, as in LLaVA.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import numpy as np

from blip3o.core.types import IMAGE_MARK, Example, Message

TALK_FIELDS = ("conversations", "messages", "conversation")
"""Field names of a conversation about images; the first field with a value counts."""

_ROLES = {
    **{name: "system" for name in ("system", "developer")},
    **{name: "user" for name in ("human", "user")},
    **{name: "assistant" for name in ("gpt", "assistant", "model", "bot", "chatgpt", "bing")},
}
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image", "image_url", "input_image")
_ANY_MARK = re.compile(
    rf"{re.escape(IMAGE_MARK)}|<\|vision_start\|><\|image_pad\|><\|vision_end\|>", re.IGNORECASE
)
"""The image mark of LLaVA in any case, or that of Qwen2-VL."""


def turns_of(fields: Mapping[str, object]) -> object:
    """Returns the turns of a record's conversation, unchecked; None if it has no conversation.

    A text in the field `system` becomes the first turn.
    """
    turns = next((fields[name] for name in TALK_FIELDS if fields.get(name)), None)
    system = fields.get("system")
    if isinstance(turns, list) and isinstance(system, str) and system.strip():
        return [{"from": "system", "value": system}, *turns]
    return turns


def messages_of(turns: Sequence[object], *, draws: bool = False) -> tuple[Message, ...]:
    """Returns the messages of a conversation up to the last answer.

    Args:
        turns: the turns as a record has them.
        draws: whether answers may hold images.

    Raises:
        ValueError: if a turn is malformed or empty, or there is no answer.
    """
    read = [_message(turn, draws=draws) for turn in turns]
    messages = [message for message in read if message is not None]
    all_texts = [message.text for message in messages]
    while messages and messages[-1].role != "assistant":
        messages.pop()  # a question without an answer teaches nothing
    if not messages or any(IMAGE_MARK in text for text in all_texts[len(messages) :]):
        raise ValueError("the conversation does not end with an answer")
    return tuple(messages)


def num_drawn(turns: object) -> int:
    """Returns the number of images in the answers of a conversation, which may be malformed."""
    count = 0
    for turn in turns if isinstance(turns, list) else ():
        with suppress(ValueError):
            message = _message(turn, draws=True)
            if message is not None and message.role == "assistant":
                count += message.text.count(IMAGE_MARK)
    return count


def with_marks(messages: tuple[Message, ...], num_images: int) -> tuple[Message, ...]:
    """Returns the messages with one mark per image.

    Args:
        messages: a conversation.
        num_images: number of images in the record; 0 if unknown.

    Raises:
        ValueError: if the number of marks is neither 0 nor `num_images`, or if no user turn can
            take the marks.
    """
    num_marks = sum(message.text.count(IMAGE_MARK) for message in messages)
    # A mark without an image is reported later, when the image is read.
    if num_marks == num_images or (num_marks, num_images) == (1, 0):
        return messages
    if num_marks:
        raise ValueError(f"the conversation has {num_marks} image marks for {num_images} images")
    place = next((k for k, message in enumerate(messages) if message.role == "user"), None)
    if place is None:
        raise ValueError("the conversation has no question that the image could belong to")
    opening, first = f"{IMAGE_MARK}\n" * num_images, messages[place]
    context = first.context + len(opening) if first.context else 0
    marked = dataclasses.replace(first, text=opening + first.text, context=context)
    return (*messages[:place], marked, *messages[place + 1 :])


def draw_turns(example: Example, max_turns: int, rng: np.random.Generator) -> Example:
    """Returns an example with some of its questions, in random order.

    Args:
        example: a conversation of independent questions and answers.
        max_turns: largest number of questions kept; the actual number is drawn as well.
        rng: source of the random choices.

    Raises:
        ValueError: if questions and answers do not alternate.
    """
    start = int(example.messages[0].role == "system")
    system, turns = example.messages[:start], example.messages[start:]
    if [turn.role for turn in turns] != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError("questions and answers do not alternate")
    first, texts = turns[0], [turn.text for turn in turns[0::2]]
    texts[0] = first.text[first.context :]
    texts = [text.replace(IMAGE_MARK, "").strip() for text in texts]
    context = first.text[: first.context].replace(IMAGE_MARK, "").lstrip()
    opening = f"{IMAGE_MARK}\n" * len(example.prompt_images) + context
    count = int(rng.integers(1, min(max_turns, len(texts)) + 1))
    messages = list(system)
    for k in rng.permutation(len(texts))[:count].tolist():
        messages += [Message(role="user", text=opening + texts[k]), turns[2 * k + 1]]
        opening = ""  # images and context precede the first question only
    return dataclasses.replace(example, messages=tuple(messages))


def check_text(text: str) -> None:
    """Raises ValueError for half a surrogate pair, which JSON may hold but no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a text holds half a character, which is not Unicode: {text[error.start]!a}"
        ) from error


def _message(turn: object, *, draws: bool) -> Message | None:
    """Returns a turn as a message; None for an empty system turn."""
    if not isinstance(turn, Mapping):
        turn = {}
    name, text = _first(turn, "from", "role"), _first(turn, "value", "content")
    role = _ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise ValueError(f"a conversation turn has the unknown role {name!r:.100}")
    if isinstance(text, list):
        text = "\n".join(map(_part_text, text))
    if role == "system" and (text is None or text == ""):
        return None
    if not isinstance(text, str) or not text.strip():
        raise ValueError("a conversation turn is empty or not a text")
    check_text(text)
    if role == "user" or (draws and role == "assistant"):
        text = _ANY_MARK.sub(IMAGE_MARK, text)
    elif IMAGE_MARK in text:
        holders = "user turns and answers" if draws else "user turns"
        raise ValueError(f"{IMAGE_MARK} in a turn of the {role}; only {holders} may hold images")
    spans, context = turn.get("learn"), turn.get("context", 0)
    if spans is not None and role != "assistant":
        raise ValueError("'learn' of a conversation turn that is not an answer")
    if not isinstance(context, int) or not 0 <= context < len(text) or (context and role != "user"):
        raise ValueError(f"'context' of a conversation turn does not fit its text: {context!r}")
    learned = None if spans is None else _learned(spans, text)
    if role == "assistant" and turn.get("weight") == 0:  # as in data sets for chat models
        learned = ()
    return Message(role=role, text=text, learned=learned, context=context)


def _first(turn: Mapping[str, object], *names: str) -> object:
    """Returns the value of the first of several names that a turn has."""
    for name in names:
        if name in turn:
            return turn[name]
    raise ValueError(f"a conversation turn is malformed: it has no {' or '.join(map(repr, names))}")


def _part_text(part: object) -> str:
    """Returns the text of one part of a turn, or the image mark for an image part."""
    kind, text = (part.get("type"), part.get("text")) if isinstance(part, dict) else (None, None)
    if kind in _IMAGE_PARTS:
        return IMAGE_MARK
    if kind not in _TEXT_PARTS or not isinstance(text, str):
        raise ValueError(
            f"a part of a conversation turn is neither a text nor an image: {part!r:.100}"
        )
    if IMAGE_MARK in text:  # ambiguous: a second mark for the image part, or a word
        raise ValueError(f"{IMAGE_MARK} in a text part of a conversation turn")
    return text


def _learned(spans: object, text: str) -> tuple[tuple[int, int], ...]:
    """Returns the (start, stop) spans of a turn to learn; they must be ordered and inside it."""
    try:
        if not isinstance(spans, Iterable):
            raise TypeError(f"{spans!r} is not a list")
        found = tuple((int(start), int(stop)) for start, stop in spans)
    except (TypeError, ValueError) as error:
        raise ValueError(f"'learn' of a conversation turn is malformed: {error}") from error
    ends = [end for span in found for end in span]
    if not found or ends != sorted(set(ends)) or ends[0] < 0 or ends[-1] > len(text):
        raise ValueError(f"'learn' of a conversation turn does not fit its text: {spans}")
    marks = [mark.span() for mark in re.finditer(IMAGE_MARK, text)]
    if any(start < end < stop for start, stop in marks for end in ends):
        raise ValueError(f"'learn' of a conversation turn cuts an image mark: {spans}")
    return found
