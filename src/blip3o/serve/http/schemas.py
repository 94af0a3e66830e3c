"""What clients may send; whatever is not here is refused."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_MOST_CHARACTERS = 100_000
Prompt = Annotated[str, Field(min_length=1, max_length=_MOST_CHARACTERS)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1, le=1000)]
Steps = Annotated[int, Field(ge=1, le=1000)]
Guidance = Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)]
User = Annotated[str, Field(max_length=512)]


class Strict(BaseModel):
    """No unknown field, and no value that has to be guessed at."""

    model_config = ConfigDict(extra="forbid", strict=True)


class PictureOptions(Strict):
    """What all requests for pictures may say.

    `size` is the model's own side ("auto" or for example "96x96"); `user` is accepted because
    clients send it, and not looked at.
    """

    model: str | None = None
    n: Count = 1
    size: str = "auto"
    response_format: Literal["b64_json", "url"] = "b64_json"
    seed: Seed | None = None
    user: User | None = None


class SampledOptions(PictureOptions):
    """What requests for sampled pictures may say besides."""

    prompt: Prompt
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    stream: bool = False


class GenerationRequest(SampledOptions):
    """The body of `POST /v1/images/generations`."""


class EditForm(SampledOptions):
    """The fields of `POST /v1/images/edits` beside its pictures; a form holds text only."""

    model_config = ConfigDict(extra="forbid", strict=False)


class VariationForm(PictureOptions):
    """The fields of `POST /v1/images/variations` beside its picture; a form holds text only."""

    model_config = ConfigDict(extra="forbid", strict=False)


class ImageUrl(Strict):
    """Where a picture is: a data URI, or a URL on a host that the server allows."""

    url: str
    detail: Literal["auto"] = "auto"


class TextPart(Strict):
    """A piece of text of a message."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=_MOST_CHARACTERS)]


class ImagePart(Strict):
    """A picture of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(max_length=_MOST_CHARACTERS)] | list[Part]


class StreamOptions(Strict):
    """How an answer is streamed."""

    include_usage: bool = False


class ChatCompletionRequest(Strict):
    """The body of `POST /v1/chat/completions`.

    With "image" among the modalities the answer is a picture; `seed`, `num_inference_steps` and
    `guidance_scale` are for pictures, `max_tokens` is for text. Answers are written greedily, so
    `temperature` is 0.
    """

    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=200)]
    modalities: Annotated[list[Literal["text", "image"]], Field(min_length=1, max_length=2)] = [
        "text"
    ]
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=0)] = 0
    n: Annotated[int, Field(ge=1, le=1)] = 1
    seed: Seed | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: User | None = None
