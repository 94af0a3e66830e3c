"""Converts the turns of a conversation to messages with image marks, and to images."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

from PIL import Image

from blip3o.core.types import IMAGE_MARK, Message
from blip3o.serve.http.errors import invalid
from blip3o.serve.http.forms import check_count
from blip3o.serve.http.service import Service
from blip3o.serve.http.turns import ImagePart, InputImagePart, Part, RefusalPart
from blip3o.text.chat import IMAGE_IN_WORDS, said_back

_SYSTEM = ("system", "developer")
"""Roles of instructions; newer clients use developer."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImagePlace:
    """An image of a turn: its data URI or URL, and the field that contains it."""

    url: str
    param: str


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation: its texts and images in order, and the field with them."""

    role: Literal["system", "user", "assistant"]
    pieces: tuple[str | ImagePlace, ...]
    param: str

    @property
    def images(self) -> list[ImagePlace]:
        """Its images."""
        return [piece for piece in self.pieces if isinstance(piece, ImagePlace)]

    @property
    def text(self) -> str:
        """Its texts, without images."""
        return "\n".join(piece for piece in self.pieces if isinstance(piece, str))


def turn(role: str, parts: Sequence[Part], param: str) -> Turn:
    """Returns a turn from the role and the parts that a client sent in the field `param`.

    Raises:
        ApiError: 400 for an image in a system turn, an image mark in a text, or an empty user turn.
    """
    kind = "system" if role in _SYSTEM else "assistant" if role == "assistant" else "user"
    pieces = tuple(_pieces(kind, parts, param))
    if kind == "user" and not any(isinstance(one, ImagePlace) or one.strip() for one in pieces):
        raise invalid(f"{param} is empty", param)
    return Turn(kind, pieces, param)


def _pieces(kind: str, parts: Sequence[Part], param: str) -> Iterator[str | ImagePlace]:
    for number, part in enumerate(parts):
        if isinstance(part, ImagePart | InputImagePart):
            if kind == "system":
                raise invalid(f"{param} contains an image; only user turns may have images", param)
            suffix = ".url" if isinstance(part, ImagePart) else ""
            yield ImagePlace(part.image_url.url, f"{param}.{number}.image_url{suffix}")
            continue
        text = part.refusal if isinstance(part, RefusalPart) else part.text
        if kind != "assistant" and IMAGE_MARK in text:
            raise invalid(f"a text contains {IMAGE_MARK}; send images as parts", param)
        yield text


def check_order(turns: Sequence[Turn], param: str) -> None:
    """Raises an `ApiError` unless system turns come first and the last turn is the user's."""
    if not turns or turns[-1].role != "user":
        raise invalid(f"the last turn of {param} must be the user's", param)
    has_begun = False
    for one in turns:
        has_begun = has_begun or one.role != "system"
        if has_begun and one.role == "system":
            raise invalid("a system message must come first", one.param)


async def read_conversation(
    service: Service, turns: Sequence[Turn], param: str
) -> tuple[list[Message], list[Image.Image]]:
    """Returns the messages for the model, and one image for each mark in them.

    Models read images only in user turns, so an image of the assistant is moved to the start of
    the next user turn.

    Args:
        service: reads the images and knows the model's limits.
        turns: turns that passed `check_order`.
        param: the field that contains them.

    Raises:
        ApiError: 400 or 413 for too many images, an unreadable image, or a conversation that is
            too long.
    """
    messages: list[Message] = []
    places: list[ImagePlace] = []
    num_moved = 0  # images of the assistant to be shown in the next user turn
    for one in turns:
        if one.role == "system" and not one.text.strip():
            continue  # clients send the empty system prompt of their settings
        places += one.images
        if one.role == "assistant":
            num_moved += len(one.images)
        marks = [IMAGE_MARK] * num_moved if one.role == "user" else []
        num_moved = 0 if one.role == "user" else num_moved
        text = "\n".join([*marks, *(_as_text(one, piece) for piece in one.pieces)])
        if one.role == "system" and messages:
            text = f"{messages.pop().text}\n\n{text}"
        messages.append(Message(role=one.role, text=text))
    check_count(len(places), service.config, param)
    images = await _images(service, places)
    service.check_chat(messages, images, param)
    return messages, images


async def prompt_and_images(
    service: Service, turns: Sequence[Turn]
) -> tuple[str, list[Image.Image]]:
    """Returns the prompt for an image, and the images to edit.

    The prompt is the text of the last turn. The images are those of the last turn; if it has none,
    the last image of the conversation.

    Raises:
        ApiError: 400 or 413 for too many images, or an unreadable image.
    """
    last = turns[-1]
    places = last.images or [place for one in turns for place in one.images][-1:]
    check_count(len(places), service.config, last.param)
    return last.text.strip(), await _images(service, places)


def _as_text(one: Turn, piece: str | ImagePlace) -> str:
    if isinstance(piece, ImagePlace):
        return IMAGE_IN_WORDS if one.role == "assistant" else IMAGE_MARK
    return said_back(piece) if one.role == "assistant" else piece


async def _images(service: Service, places: Sequence[ImagePlace]) -> list[Image.Image]:
    return [await service.reader.from_url(place.url, place.param) for place in places]
