"""Schemas of request bodies; unknown fields and unsupported values are refused."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from blip3o.generate.text_settings import LONGEST_STOP
from blip3o.serve.http.fields import (
    UNSUPPORTED,
    Bookkeeping,
    Count,
    Form,
    Guidance,
    Label,
    Never,
    Only,
    PartialImages,
    Place,
    Prompt,
    Seed,
    Steps,
    Strict,
    TextSettings,
    TokenLimit,
)
from blip3o.serve.http.turns import ChatMessage, Content, LongText

# ---------------------------------------------------------------------------------------------
# /v1/images/...


class _FileOptions(Strict):
    """Fields of all requests for images that describe the output.

    `size` must be the model's image size ("auto" or for example "96x96"). The other fields accept
    only values that match the output: PNG files without transparency.
    """

    model: str | None = None
    size: str = "auto"
    background: Annotated[object, Only("auto", "opaque")] = None
    output_format: Annotated[object, Only("png")] = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    moderation: Annotated[object, Only("auto", "low")] = None


class _SampledFileOptions(_FileOptions):
    """Fields of all requests for sampled images; video and vector files are not supported."""

    partial_images: PartialImages = 0
    complexity: Never = None
    frame_count: Never = None
    frame_duration_ms: Never = None
    svg: Never = None


class ImageOptions(_FileOptions):
    """Fields of all requests to `/v1/images/...`."""

    n: Count = 1
    response_format: Literal["b64_json", "url"] = "b64_json"
    seed: Seed | None = None
    user: Label | None = None
    safety_identifier: Label | None = None
    quality: Annotated[object, Only("auto", "standard")] = None


class SampledOptions(ImageOptions, _SampledFileOptions):
    """Additional fields of requests for sampled images.

    `prompt_number` and `image_number` are those of the first image in a longer list; like the seed
    they determine the noise.
    """

    prompt: Prompt
    prompt_number: Place = 0
    image_number: Place = 0
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    stream: bool = False
    style: Annotated[object, Only("vivid")] = None


class GenerationRequest(SampledOptions):
    """The body of `POST /v1/images/generations`."""


class EditForm(SampledOptions, Form):
    """The fields of `POST /v1/images/edits`, except its images."""

    model_config = Form.model_config
    mask: Never = None
    input_fidelity: Annotated[object, Only("low")] = None


class VariationForm(ImageOptions, Form):
    """The fields of `POST /v1/images/variations`, except its image."""

    model_config = Form.model_config


# ---------------------------------------------------------------------------------------------
# /v1/chat/completions


class StreamOptions(Strict):
    """Options of streamed chat completions."""

    include_usage: bool = False
    include_obfuscation: Annotated[object, Only(False)] = None


def _as_list(stop: object) -> object:
    if not isinstance(stop, str | list):
        raise PydanticCustomError("stop", "must be text or a list of texts")
    return [stop] if isinstance(stop, str) else stop


class ChatCompletionRequest(Bookkeeping, TextSettings):
    """The body of `POST /v1/chat/completions`.

    With "image" in `modalities`, the answer is an image, controlled by `seed`,
    `num_inference_steps` and `guidance_scale`; the settings for text then have no effect.
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
    frequency_penalty: Annotated[object, Only(0)] = None
    presence_penalty: Annotated[object, Only(0)] = None
    logit_bias: Annotated[object, Only({})] = None
    logprobs: Annotated[object, Only(False)] = None
    response_format: Annotated[object, Only({"type": "text"})] = None
    tools: Annotated[object, Only([])] = None
    tool_choice: Annotated[object, Only("none", "auto")] = None
    functions: Annotated[object, Only([])] = None
    function_call: Annotated[object, Only("none", "auto")] = None
    reasoning_effort: Annotated[
        object, Only("none", "medium", because="the model writes answers without reasoning first")
    ] = None
    verbosity: Annotated[object, Only("medium")] = None
    prediction: Never = None
    audio: Never = None
    web_search_options: Never = None


# ---------------------------------------------------------------------------------------------
# /v1/responses

IMAGE_TOOL = "image_generation"
_UNSTORED = "answers are not stored; send the whole conversation as the input"
_UnusedDetails = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
]
"""Values of `include` that concern items which this server never produces."""


class MessageItem(Strict):
    """One turn of a conversation."""

    type: Literal["message"]
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: Label | None = None
    status: Label | None = None
    phase: Label | None = None


class ImageCallItem(Strict):
    """An image of an earlier answer; its descriptive fields are ignored.

    Some clients send only its id, without the image.
    """

    type: Literal["image_generation_call"]
    result: str | None = None
    id: Label | None = None
    status: Label | None = None
    action: Label | None = None
    background: Label | None = None
    output_format: Label | None = None
    quality: Label | None = None
    revised_prompt: LongText | None = None
    size: Label | None = None


class ItemReference(Strict):
    """A reference to an item of an earlier answer."""

    type: Literal["item_reference"]
    id: Label


Item = Annotated[MessageItem | ImageCallItem | ItemReference, Field(discriminator="type")]
ITEM_TYPES = ("message", "image_generation_call", "item_reference")


def _with_type(item: object) -> object:
    """Returns an item with its type, which clients may leave out."""
    if not isinstance(item, dict) or item.get("type") is not None:
        return item
    kind = "item_reference" if "id" in item and "role" not in item else "message"
    return {**item, "type": kind}


def _as_items(given: object) -> object:
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list):
        raise PydanticCustomError("input", "must be text or a list of items")
    return [_with_type(item) for item in given]


class ImageTool(_SampledFileOptions):
    """The tool that generates images."""

    type: Literal["image_generation"]
    action: Literal["auto", "generate", "edit"] = "auto"
    quality: Annotated[object, Only("auto")] = None
    input_fidelity: Annotated[object, Only("low")] = None
    input_image_mask: Never = None


def _image_tool(tool: object) -> object:
    if isinstance(tool, dict) and tool.get("type") != IMAGE_TOOL:
        words = f"is not supported by this server; the only tool is {IMAGE_TOOL}"
        raise PydanticCustomError(UNSUPPORTED, "{words}", {"words": words})
    return tool


class TextFormat(Strict):
    """Format of written answers."""

    format: Annotated[object, Only({"type": "text"})] = None
    verbosity: Annotated[object, Only("medium")] = None


class Reasoning(Strict):
    """Settings of reasoning, which this model does not do."""

    effort: Annotated[object, Only("none", "medium")] = None
    summary: Annotated[object, Only("auto")] = None
    generate_summary: Annotated[object, Only("auto")] = None
    context: Annotated[object, Only("auto")] = None
    mode: Annotated[object, Only("standard")] = None


class ResponseStreamOptions(Strict):
    """Options of streamed responses."""

    include_obfuscation: Annotated[object, Only(False)] = None


class ResponseRequest(Bookkeeping, TextSettings):
    """The body of `POST /v1/responses`.

    With the tool "image_generation" the answer is an image, unless `tool_choice` is "none".
    """

    model: str | None = None
    input: Annotated[list[Item], Field(min_length=1, max_length=200), BeforeValidator(_as_items)]
    instructions: LongText | None = None
    max_output_tokens: TokenLimit | None = None
    tools: Annotated[
        list[Annotated[ImageTool, BeforeValidator(_image_tool)]], Field(max_length=1)
    ] = Field(default_factory=list)
    tool_choice: Annotated[object, Only("auto", "none", "required", {"type": IMAGE_TOOL})] = "auto"
    max_tool_calls: TokenLimit | None = None
    text: TextFormat | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    include: list[_UnusedDetails] = Field(default_factory=list)
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None
    background: Annotated[object, Only(False)] = None
    previous_response_id: Annotated[object, Only(because=_UNSTORED)] = None
    conversation: Annotated[object, Only(because=_UNSTORED)] = None
    prompt: Never = None
    context_management: Annotated[object, Only([])] = None
    access_programs: Never = None
    image: Never = None
