"""What clients may send to `/v1/responses`; whatever is not here is refused."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from blip3o.serve.http.fields import (
    UNSUPPORTED,
    Bookkeeping,
    Label,
    Never,
    Only,
    PartialImages,
    Strict,
    TextSettings,
    TokenLimit,
)
from blip3o.serve.http.turns import Content, Said

IMAGE_TOOL = "image_generation"
_UNSTORED = "answers are not stored; send the whole conversation as the input"
_OfOthers = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
]
"""Details of things that no answer of this server holds."""


class MessageItem(Strict):
    """One turn of a conversation."""

    type: Literal["message"]
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: Label | None = None
    status: Label | None = None
    phase: Label | None = None


class ImageCallItem(Strict):
    """An image that an earlier answer drew; the fields that describe it are not read.

    Some clients send its id alone, without the image.
    """

    type: Literal["image_generation_call"]
    result: str | None = None
    id: Label | None = None
    status: Label | None = None
    action: Label | None = None
    background: Label | None = None
    output_format: Label | None = None
    quality: Label | None = None
    revised_prompt: Said | None = None
    size: Label | None = None


class ItemReference(Strict):
    """An item of an earlier answer, by its id."""

    type: Literal["item_reference"]
    id: Label


Item = Annotated[MessageItem | ImageCallItem | ItemReference, Field(discriminator="type")]
ITEM_TYPES = ("message", "image_generation_call", "item_reference")


def _with_type(item: Any) -> Any:  # noqa: ANN401  (whatever a client sends)
    """Returns an item with the type that may go without saying."""
    if not isinstance(item, dict) or item.get("type") is not None:
        return item
    kind = "item_reference" if "id" in item and "role" not in item else "message"
    return {**item, "type": kind}


def _as_items(given: Any) -> Any:  # noqa: ANN401  (whatever a client sends)
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list):
        raise PydanticCustomError("input", "must be text or a list of items")
    return [_with_type(item) for item in given]


class ImageTool(Strict):
    """The tool that draws; what it may say is what the images are anyway."""

    type: Literal["image_generation"]
    action: Literal["auto", "generate", "edit"] = "auto"
    model: str | None = None
    size: str = "auto"
    partial_images: PartialImages = 0
    quality: Annotated[Any, Only("auto")] = None
    background: Annotated[Any, Only("auto", "opaque")] = None
    output_format: Annotated[Any, Only("png")] = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    moderation: Annotated[Any, Only("auto", "low")] = None
    input_fidelity: Annotated[Any, Only("low")] = None
    input_image_mask: Never = None
    complexity: Never = None
    frame_count: Never = None
    frame_duration_ms: Never = None
    svg: Never = None


def _image_tool(tool: Any) -> Any:  # noqa: ANN401  (whatever a client sends)
    if isinstance(tool, dict) and tool.get("type") != IMAGE_TOOL:
        words = f"is not supported by this server; the only tool is {IMAGE_TOOL}"
        raise PydanticCustomError(UNSUPPORTED, "{words}", {"words": words})
    return tool


class TextFormat(Strict):
    """The form of a text."""

    format: Annotated[Any, Only({"type": "text"})] = None
    verbosity: Annotated[Any, Only("medium")] = None


class Reasoning(Strict):
    """How a model reasons; this one does not."""

    effort: Annotated[Any, Only("none", "medium")] = None
    summary: Annotated[Any, Only("auto")] = None
    generate_summary: Annotated[Any, Only("auto")] = None
    context: Annotated[Any, Only("auto")] = None
    mode: Annotated[Any, Only("standard")] = None


class ResponseStreamOptions(Strict):
    """How an answer is streamed."""

    include_obfuscation: Annotated[Any, Only(False)] = None


class ResponseRequest(Bookkeeping, TextSettings):
    """The body of `POST /v1/responses`.

    With the tool "image_generation" the answer is an image, unless `tool_choice` is "none".
    """

    model: str | None = None
    input: Annotated[list[Item], Field(min_length=1, max_length=200), BeforeValidator(_as_items)]
    instructions: Said | None = None
    max_output_tokens: TokenLimit | None = None
    tools: Annotated[
        list[Annotated[ImageTool, BeforeValidator(_image_tool)]], Field(max_length=1)
    ] = Field(default_factory=list)
    tool_choice: Annotated[Any, Only("auto", "none", "required", {"type": IMAGE_TOOL})] = "auto"
    max_tool_calls: TokenLimit | None = None
    text: TextFormat | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    include: list[_OfOthers] = Field(default_factory=list)
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None
    background: Annotated[Any, Only(False)] = None
    previous_response_id: Annotated[Any, Only(because=_UNSTORED)] = None
    conversation: Annotated[Any, Only(because=_UNSTORED)] = None
    prompt: Never = None
    context_management: Annotated[Any, Only([])] = None
    access_programs: Never = None
    image: Never = None
