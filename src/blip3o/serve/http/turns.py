"""The turns of conversations as clients send them, and the parts that a turn is made of."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from blip3o.serve.http.fields import MOST_CHARACTERS, Never, Only, Strict

Said = Annotated[str, Field(max_length=MOST_CHARACTERS)]
_OF_ASSISTANTS = (
    "annotations",
    "provider_specific_fields",
    "reasoning_content",
    "refusal",
)


class _Part(Strict):
    """A part of a message; it may carry marks for caches of prompts, which change no answer."""

    prompt_cache_breakpoint: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None


class ImageUrl(Strict):
    """Where an image is: a data URI, or a URL on a host that the server allows.

    The model reads an image in one size, so `detail` changes nothing.
    """

    url: str
    detail: Literal["auto", "low", "high", "original"] = "auto"


class TextPart(_Part):
    """A piece of text of a message."""

    type: Literal["text", "input_text", "output_text"]
    text: Said
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class RefusalPart(_Part):
    """What an assistant said in the place of an answer."""

    type: Literal["refusal"]
    refusal: Said


def _as_object(url: Any) -> Any:  # noqa: ANN401  (whatever a client sends)
    if isinstance(url, str):
        return {"url": url}
    if not isinstance(url, Mapping):
        raise PydanticCustomError("image_url", "must be a URL, or an object that holds one")
    return url


class ImagePart(_Part):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: Annotated[ImageUrl, BeforeValidator(_as_object)]


class InputImagePart(_Part):
    """An image of a message, as `/v1/responses` spells it."""

    type: Literal["input_image"]
    image_url: Annotated[ImageUrl, BeforeValidator(_as_object)]
    detail: Literal["auto", "low", "high", "original"] = "auto"
    file_id: Never = None


Part = Annotated[TextPart | RefusalPart | ImagePart | InputImagePart, Field(discriminator="type")]
PART_TYPES = ("text", "input_text", "output_text", "refusal", "image_url", "input_image")


def _as_parts(content: Any) -> Any:  # noqa: ANN401  (whatever a client sends)
    """Returns the parts of a content that may be one text."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise PydanticCustomError("content", "must be text or a list of parts")
    return content


Content = Annotated[list[Part], BeforeValidator(_as_parts)]


class ChatMessage(Strict):
    """One turn of a conversation.

    Clients send an answer back with all of its fields. So a turn of the assistant may have the
    fields of answers if they are empty, and notes about its text are not read.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: Content = Field(default_factory=list)
    name: Never = None
    refusal: Said | None = None
    annotations: list[Any] | None = None
    reasoning_content: str | None = None
    provider_specific_fields: dict[str, Any] | None = None
    audio: Never = None
    function_call: Never = None
    tool_calls: Annotated[Any, Only([])] = None

    @model_validator(mode="before")
    @classmethod
    def _notes_of_assistants(cls, data: Any) -> Any:  # noqa: ANN401  (whatever a client sends)
        if not isinstance(data, Mapping) or data.get("role") == "assistant":
            return data
        for name in _OF_ASSISTANTS:
            if data.get(name) is not None:
                words = {"words": f"holds {name}, which only turns of the assistant have"}
                raise PydanticCustomError("role", "{words}", words)
        if data.get("content") is None:
            raise PydanticCustomError("content", "has no content")
        return data
