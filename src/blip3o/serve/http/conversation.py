"""Turns of clients become what a model reads: messages with marks, and the images of the marks."""

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
"""Roles of instructions; newer clients say developer."""


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """An image of a turn.

    Args:
        url: a data URI, or a URL on a host that the server allows.
        param: the field that holds it.
    """

    url: str
    param: str


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """One turn.

    Args:
        role: whose it is.
        pieces: its texts and images in order.
        param: the field that holds its pieces.
    """

    role: Literal["system", "user", "assistant"]
    pieces: tuple[str | Place, ...]
    param: str

    @property
    def places(self) -> list[Place]:
        """Its images."""
        return [piece for piece in self.pieces if isinstance(piece, Place)]

    @property
    def text(self) -> str:
        """Its texts, without images."""
        return "\n".join(piece for piece in self.pieces if isinstance(piece, str))


def turn(role: str, parts: Sequence[Part], param: str) -> Turn:
    """Returns a turn of a client as one of this server.

    Args:
        role: as clients name it.
        parts: what the turn is made of.
        param: the field that holds the parts.

    Raises:
        ApiError: 400 for an image in instructions, an image mark in a text, or a turn of a user
            that says nothing.
    """
    kind = "system" if role in _SYSTEM else "assistant" if role == "assistant" else "user"
    pieces = tuple(_pieces(kind, parts, param))
    if kind == "user" and not any(isinstance(one, Place) or one.strip() for one in pieces):
        raise invalid(f"{param} says nothing", param)
    return Turn(kind, pieces, param)


def _pieces(kind: str, parts: Sequence[Part], param: str) -> Iterator[str | Place]:
    for number, part in enumerate(parts):
        if isinstance(part, ImagePart | InputImagePart):
            if kind == "system":
                raise invalid(f"{param} holds an image; images stand in turns of users", param)
            spelled = ".url" if isinstance(part, ImagePart) else ""
            yield Place(part.image_url.url, f"{param}.{number}.image_url{spelled}")
            continue
        text = part.refusal if isinstance(part, RefusalPart) else part.text
        if kind != "assistant" and IMAGE_MARK in text:
            raise invalid(f"{IMAGE_MARK} in a text; send images as parts", param)
        yield text


def check_order(turns: Sequence[Turn], param: str) -> None:
    """Checks that instructions come first and a user last.

    Raises:
        ApiError: 400 if not.
    """
    if not turns or turns[-1].role != "user":
        raise invalid(f"the last of the {param} must be the user's", param)
    is_begun = False
    for one in turns:
        is_begun = is_begun or one.role != "system"
        if is_begun and one.role == "system":
            raise invalid("a system message comes first", one.param)


async def read_conversation(
    service: Service, turns: Sequence[Turn], param: str
) -> tuple[list[Message], list[Image.Image]]:
    """Returns the messages that a model reads, and one image for each mark in them.

    Models read images in turns of users. So an image of an assistant stands at the beginning of
    the turn of the user that follows.

    Args:
        service: reads the images.
        turns: in order; see `check_order`.
        param: the field that holds them.

    Raises:
        ApiError: 400 or 413 for too many images, or one that cannot be read.
    """
    messages: list[Message] = []
    places: list[Place] = []
    carried = 0  # images of the assistant that the next turn of the user shows
    for one in turns:
        if one.role == "system" and not one.text.strip():
            continue  # clients send the empty field of their settings
        places += one.places
        if one.role == "assistant":
            carried += len(one.places)
        marks = [IMAGE_MARK] * carried if one.role == "user" else []
        carried = 0 if one.role == "user" else carried
        text = "\n".join([*marks, *(_read(one, piece) for piece in one.pieces)])
        if one.role == "system" and messages:
            text = f"{messages.pop().text}\n\n{text}"
        messages.append(Message(role=one.role, text=text))
    check_count(len(places), service.config, param)
    return messages, await _images(service, places)


async def drawn_from(service: Service, turns: Sequence[Turn]) -> tuple[str, list[Image.Image]]:
    """Returns what to draw: the text of the last turn, and the images that it changes.

    Those are the images of the last turn, or else the last image that the conversation holds.

    Args:
        service: reads the images.
        turns: in order; see `check_order`.

    Raises:
        ApiError: 400 or 413 for too many images, or one that cannot be read.
    """
    last = turns[-1]
    places = last.places or [place for one in turns for place in one.places][-1:]
    check_count(len(places), service.config, last.param)
    return last.text.strip(), await _images(service, places)


def _read(one: Turn, piece: str | Place) -> str:
    if isinstance(piece, Place):
        return IMAGE_IN_WORDS if one.role == "assistant" else IMAGE_MARK
    return said_back(piece) if one.role == "assistant" else piece


async def _images(service: Service, places: Sequence[Place]) -> list[Image.Image]:
    return [await service.reader.from_url(place.url, place.param) for place in places]
