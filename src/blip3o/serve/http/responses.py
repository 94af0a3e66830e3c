"""`/v1/responses`: the interface that newer clients use first, for texts and images."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from blip3o.serve.http.chat import image_job
from blip3o.serve.http.conversation import (
    Place,
    Turn,
    check_order,
    drawn_from,
    read_conversation,
    turn,
)
from blip3o.serve.http.errors import ApiError, invalid, validated
from blip3o.serve.http.images import check_size
from blip3o.serve.http.json_in import JsonRoute
from blip3o.serve.http.response_events import ResponseWriter
from blip3o.serve.http.response_items import ItemShelf
from blip3o.serve.http.response_schemas import (
    ImageCallItem,
    ImageTool,
    Item,
    ItemReference,
    MessageItem,
    ResponseRequest,
)
from blip3o.serve.http.service import Service
from blip3o.serve.http.settings import text_sampling
from blip3o.serve.http.sse import GONE, event_stream
from blip3o.serve.http.turns import TextPart
from blip3o.serve.jobs import ChatRequest, ImageRequest


def response_routes(service: Service) -> APIRouter:
    """Returns the route for responses."""
    router = APIRouter(tags=["responses"], route_class=JsonRoute)
    shelf = ItemShelf()

    @router.post("/v1/responses", summary="The next turn of a conversation, or an image")
    async def responses(body: ResponseRequest, request: Request) -> Response:
        job = await response_job(service, body, shelf)
        writer = ResponseWriter(service, job, body, shelf)
        if body.stream:
            return await event_stream(writer.streamed(request))
        answer = await writer.whole(request)
        return GONE if answer is None else JSONResponse(answer)

    return router


async def response_job(
    service: Service, body: ResponseRequest, shelf: ItemShelf
) -> ChatRequest | ImageRequest:
    """Returns the work that a request asks for.

    The model does not choose among tools: a request that lists the image tool gets an image.

    Raises:
        ApiError: 400, 404 or 413 for what the model or the server's limits do not allow.
    """
    service.check_model(body.model)
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options is for streamed answers", "stream_options")
    if not body.tools and body.tool_choice not in ("auto", "none"):
        raise invalid("tool_choice asks for a tool, and tools lists none", "tool_choice")
    turns = _turns(body, shelf)
    check_order(turns, "input")
    if body.tools and body.tool_choice != "none":
        return await _image_job(service, body, turns, body.tools[0])
    limit = ("max_output_tokens", body.max_output_tokens)
    sampling = text_sampling(service, body, limit)
    messages, images = await read_conversation(service, turns, "input")
    try:
        service.check_chat(messages, images)
    except ApiError as error:  # it names the field of chats
        raise invalid(error.message, "input", error.code or "invalid_value") from error
    return ChatRequest(messages=messages, images=images, sampling=sampling)


async def _image_job(
    service: Service, body: ResponseRequest, turns: list[Turn], tool: ImageTool
) -> ImageRequest:
    service.check_model(tool.model, "tools.0.model")
    check_size(service, tool.size, "tools.0.size")
    if tool.action == "generate":
        if turns[-1].places:
            message = "tools.0.action is generate, but the last turn holds an image; use edit"
            raise invalid(message, "tools.0.action")
        return image_job(service, body, turns[-1].text.strip(), [], "input")
    text, images = await drawn_from(service, turns)
    if tool.action == "edit" and not images:
        message = "tools.0.action is edit, but the input holds no image"
        raise invalid(message, "tools.0.action")
    return image_job(service, body, text, images, "input")


def _turns(body: ResponseRequest, shelf: ItemShelf) -> list[Turn]:
    turns: list[Turn] = []
    if body.instructions is not None:
        said = [TextPart(type="text", text=body.instructions)]
        turns.append(turn("system", said, "instructions"))
    for number, item in enumerate(body.input):
        param = f"input.{number}"
        one = _turn(_found(item, shelf, param), param)
        # The message without words that ends an answer with an image says nothing to a model.
        is_end_of_image = one.role == "assistant" and turns and turns[-1].role == "assistant"
        if not (is_end_of_image and not one.places and not one.text.strip()):
            turns.append(one)
    return turns


def _turn(item: MessageItem | ImageCallItem, param: str) -> Turn:
    if isinstance(item, MessageItem):
        return turn(item.role, item.content, f"{param}.content")
    place = f"{param}.result"
    if item.result is None:
        raise invalid(f"{place} is missing", place, "missing_required_parameter")
    is_uri = item.result.lower().startswith("data:")
    url = item.result if is_uri else f"data:image/png;base64,{item.result}"
    return Turn("assistant", (Place(url, place),), place)


def _found(item: Item, shelf: ItemShelf, param: str) -> MessageItem | ImageCallItem:
    """Returns an item, or the one that a reference names."""
    is_named = isinstance(item, ItemReference) or (
        isinstance(item, ImageCallItem) and item.result is None and item.id is not None
    )
    if not is_named:
        assert not isinstance(item, ItemReference), "references name something"
        return item
    held: dict[str, Any] | None = shelf.get(item.id or "")
    if held is None:
        message = f"{param}.id names an item that is not held here (any more); send the item itself"
        raise invalid(message, f"{param}.id", "item_not_found")
    kind = MessageItem if held["type"] == "message" else ImageCallItem
    return validated(kind, held)
