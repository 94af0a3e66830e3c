"""What clients may send to `/v1/images/...` and `/v1/chat/completions`; the rest is refused."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from blip3o.generate.text_settings import LONGEST_STOP
from blip3o.serve.http.fields import (
    Bookkeeping,
    Count,
    Form,
    Guidance,
    Label,
    Never,
    Only,
    PartialImages,
    Prompt,
    Seed,
    Steps,
    Strict,
    TextSettings,
    TokenLimit,
)
from blip3o.serve.http.turns import ChatMessage


class ImageOptions(Strict):
    """What all requests for images may say.

    `size` is the model's own side ("auto" or for example "96x96"). The last six fields may say
    what the images are anyway: PNG files without transparency.
    """

    model: str | None = None
    n: Count = 1
    size: str = "auto"
    response_format: Literal["b64_json", "url"] = "b64_json"
    seed: Seed | None = None
    user: Label | None = None
    safety_identifier: Label | None = None
    quality: Annotated[Any, Only("auto", "standard")] = None
    background: Annotated[Any, Only("auto", "opaque")] = None
    output_format: Annotated[Any, Only("png")] = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    moderation: Annotated[Any, Only("auto", "low")] = None


class SampledOptions(ImageOptions):
    """What requests for sampled images may say besides."""

    prompt: Prompt
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    stream: bool = False
    partial_images: PartialImages = 0
    style: Annotated[Any, Only("vivid")] = None
    complexity: Never = None
    frame_count: Never = None
    frame_duration_ms: Never = None
    svg: Never = None


class GenerationRequest(SampledOptions):
    """The body of `POST /v1/images/generations`."""


class EditForm(SampledOptions, Form):
    """The fields of `POST /v1/images/edits` beside its images."""

    model_config = Form.model_config
    mask: Never = None
    input_fidelity: Annotated[Any, Only("low")] = None


class VariationForm(ImageOptions, Form):
    """The fields of `POST /v1/images/variations` beside its image."""

    model_config = Form.model_config


class StreamOptions(Strict):
    """How an answer is streamed."""

    include_usage: bool = False
    include_obfuscation: Annotated[Any, Only(False)] = None


def _as_list(stop: Any) -> Any:  # noqa: ANN401  (whatever a client sends)
    if not isinstance(stop, str | list):
        raise PydanticCustomError("stop", "must be text or a list of texts")
    return [stop] if isinstance(stop, str) else stop


class ChatCompletionRequest(Bookkeeping, TextSettings):
    """The body of `POST /v1/chat/completions`.

    With "image" among the modalities the answer is an image, for which `seed`,
    `num_inference_steps` and `guidance_scale` are; no text is written then, so the settings of
    text change nothing.
    """

    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=200)]
    modalities: Annotated[list[Literal["text", "image"]], Field(min_length=1, max_length=2)] = (
        Field(default_factory=lambda: ["text"])
    )
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    n: Count = 1
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]],
        Field(max_length=4),
        BeforeValidator(_as_list),
    ] = Field(default_factory=list)
    stream: bool = False
    stream_options: StreamOptions | None = None
    frequency_penalty: Annotated[Any, Only(0)] = None
    presence_penalty: Annotated[Any, Only(0)] = None
    logit_bias: Annotated[Any, Only({})] = None
    logprobs: Annotated[Any, Only(False)] = None
    response_format: Annotated[Any, Only({"type": "text"})] = None
    tools: Annotated[Any, Only([])] = None
    tool_choice: Annotated[Any, Only("none", "auto")] = None
    functions: Annotated[Any, Only([])] = None
    function_call: Annotated[Any, Only("none", "auto")] = None
    reasoning_effort: Annotated[Any, Only("none", "medium", because="the model writes at once")] = (
        None
    )
    verbosity: Annotated[Any, Only("medium")] = None
    prediction: Never = None
    audio: Never = None
    web_search_options: Never = None
