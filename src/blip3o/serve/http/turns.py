"""Schemas of the turns of a conversation, and of the parts of a turn."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from blip3o.serve.http.fields import MOST_CHARACTERS, JsonObject, Never, Only, Strict

LongText = Annotated[str, Field(max_length=MOST_CHARACTERS)]
_ASSISTANT_FIELDS = (
    "annotations",
    "provider_specific_fields",
    "reasoning_content",
    "refusal",
)


class _Part(Strict):
    """A part of a message; it may contain prompt cache markers, which do not affect the answer."""

    prompt_cache_breakpoint: JsonObject | None = None
    cache_control: JsonObject | None = None


class ImageUrl(Strict):
    """Location of an image: a data URI, or a URL on a host that the server allows.

    `detail` has no effect, because the model reads images in one size.
    """

    url: str
    detail: Literal["auto", "low", "high", "original"] = "auto"


class TextPart(_Part):
    """A text in a message."""

    type: Literal["text", "input_text", "output_text"]
    text: LongText
    annotations: list[object] | None = None
    logprobs: list[object] | None = None


class RefusalPart(_Part):
    """The text with which an assistant refused to answer."""

    type: Literal["refusal"]
    refusal: LongText


def _as_object(url: object) -> object:
    if isinstance(url, str):
        return {"url": url}
    if not isinstance(url, Mapping):
        raise PydanticCustomError("image_url", "must be a URL or an object with a URL")
    return url


class ImagePart(_Part):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: Annotated[ImageUrl, BeforeValidator(_as_object)]


class InputImagePart(_Part):
    """An image in a message, in the format of `/v1/responses`."""

    type: Literal["input_image"]
    image_url: Annotated[ImageUrl, BeforeValidator(_as_object)]
    detail: Literal["auto", "low", "high", "original"] = "auto"
    file_id: Never = None


Part = Annotated[TextPart | RefusalPart | ImagePart | InputImagePart, Field(discriminator="type")]
PART_TYPES = ("text", "input_text", "output_text", "refusal", "image_url", "input_image")


def _as_parts(content: object) -> object:
    """Returns content as a list of parts; it may be a single text."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise PydanticCustomError("content", "must be text or a list of parts")
    return content


Content = Annotated[list[Part], BeforeValidator(_as_parts)]


class ChatMessage(Strict):
    """One turn of a conversation.

    Clients send previous answers back with all of their fields. Therefore assistant turns accept
    the fields of answers if they are empty, and ignore annotations of the text.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: Content = Field(default_factory=list)
    name: Never = None
    refusal: LongText | None = None
    annotations: list[object] | None = None
    reasoning_content: str | None = None
    provider_specific_fields: JsonObject | None = None
    audio: Never = None
    function_call: Never = None
    tool_calls: Annotated[object, Only([])] = None

    @model_validator(mode="before")
    @classmethod
    def _assistant_fields(cls, data: object) -> object:
        if not isinstance(data, Mapping) or data.get("role") == "assistant":
            return data
        for name in _ASSISTANT_FIELDS:
            if data.get(name) is not None:
                words = {"words": f"has the field {name}, which only assistant turns may have"}
                raise PydanticCustomError("role", "{words}", words)
        if data.get("content") is None:
            raise PydanticCustomError("content", "has no content")
        return data
