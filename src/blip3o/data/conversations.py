r"""Conversations in the forms of published data, as messages whose marks stand for the images.

    {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a cat"}
    {"role": "user", "content": "..."}, {"role": "assistant", "content": [{"type": "text", ...}]}

Images without a mark stand before the first question, as LLaVA puts them.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from blip3o.core.types import IMAGE_MARK, Message

TALK_FIELDS = ("conversations", "messages", "conversation")
"""Where a conversation about images is; the first that says something counts."""

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
"""The mark of LLaVA in any case, and that of Qwen2-VL."""


def turns_of(fields: Mapping[str, Any]) -> Any:  # noqa: ANN401  (whatever the file holds)
    """Returns the turns of a record's conversation, unchecked; None if it has none.

    Args:
        fields: the record's fields. If they hold a text in `system`, it becomes the first turn.
    """
    turns = next((fields[name] for name in TALK_FIELDS if fields.get(name)), None)
    system = fields.get("system")
    if isinstance(turns, list) and isinstance(system, str) and system.strip():
        return [{"from": "system", "value": system}, *turns]
    return turns


def messages_of(turns: Sequence[Any]) -> tuple[Message, ...]:
    """Returns the messages of a conversation; what follows the last answer is left out.

    Args:
        turns: the turns as a file holds them.

    Raises:
        ValueError: if a turn is malformed or empty, or there is no answer.
    """
    messages = [message for message in map(_message, turns) if message is not None]
    asked = [message.text for message in messages]
    while messages and messages[-1].role != "assistant":
        messages.pop()  # nothing is learned of a question that stays open
    if not messages or any(IMAGE_MARK in text for text in asked[len(messages) :]):
        raise ValueError("the conversation does not end with an answer")
    return tuple(messages)


def with_marks(messages: tuple[Message, ...], num_images: int) -> tuple[Message, ...]:
    """Returns the messages with a mark for each image.

    Args:
        messages: a conversation.
        num_images: how many images the record has; 0 if that is not known.

    Raises:
        ValueError: if there are marks, but not one for each image, or no question to put them in.
    """
    num_marks = sum(message.text.count(IMAGE_MARK) for message in messages)
    # Whoever reads the image reports a mark that has none.
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


def _message(turn: Any) -> Message | None:  # noqa: ANN401  (whatever the file holds)
    """Returns a turn as a message; None for a system turn that says nothing."""
    name, said = _first(turn, "from", "role"), _first(turn, "value", "content")
    role = _ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise ValueError(f"a conversation turn has the unknown role {name!r:.100}")
    if isinstance(said, list):
        said = "\n".join(_part(part) for part in said)
    if role == "system" and (said is None or said == ""):
        return None
    if not isinstance(said, str) or not said.strip():
        raise ValueError("a conversation turn is empty or no text")
    check_text(said)
    if role == "user":
        said = _ANY_MARK.sub(IMAGE_MARK, said)
    elif IMAGE_MARK in said:
        raise ValueError(f"{IMAGE_MARK} in a turn of the {role}; images stand in user turns")
    spans, context = turn.get("learn"), turn.get("context", 0)
    if spans is not None and role != "assistant":
        raise ValueError("'learn' of a conversation turn that is no answer")
    if not isinstance(context, int) or not 0 <= context < len(said) or (context and role != "user"):
        raise ValueError(f"'context' of a conversation turn does not fit its text: {context!r}")
    learned = _spans(spans, said)
    if role == "assistant" and turn.get("weight") == 0:  # as in lists for chat models
        learned = ()
    return Message(role=role, text=said, learned=learned, context=context)


def _first(turn: Any, *names: str) -> Any:  # noqa: ANN401
    """Returns what stands in a turn under the first of some names that it has."""
    for name in names if isinstance(turn, Mapping) else ():
        if name in turn:
            return turn[name]
    raise ValueError(f"a conversation turn is malformed: it has no {' or '.join(map(repr, names))}")


def _part(part: Any) -> str:  # noqa: ANN401
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _IMAGE_PARTS:
        return IMAGE_MARK
    text = part.get("text") if kind in _TEXT_PARTS else None
    if not isinstance(text, str):
        raise ValueError(f"a part of a conversation turn is no text and no image: {part!r:.100}")
    if IMAGE_MARK in text:  # is it a mark beside the image's own part, or a word?
        raise ValueError(f"{IMAGE_MARK} in a text part of a conversation turn")
    return text


def check_text(text: str) -> None:
    """Refuses half characters, which JSON may hold and no tokenizer reads.

    Args:
        text: what is to be learned.

    Raises:
        ValueError: if there is one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a text holds half a character, which is no Unicode: {text[error.start]!a}"
        ) from error


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
