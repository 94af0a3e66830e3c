"""`/v1/responses`: OpenAI's newer interface, for texts and images."""

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from blip3o.serve.http.conversation import (
    ImagePlace,
    Turn,
    check_order,
    prompt_and_images,
    read_conversation,
    turn,
)
from blip3o.serve.http.errors import invalid, validated
from blip3o.serve.http.json_in import JsonRoute
from blip3o.serve.http.output import GONE, event_stream
from blip3o.serve.http.request_jobs import (
    check_size,
    check_stream_options,
    prompted_job,
    text_sampling,
)
from blip3o.serve.http.response_writer import ItemCache, ResponseWriter
from blip3o.serve.http.schemas import (
    ImageCallItem,
    ImageTool,
    Item,
    ItemReference,
    MessageItem,
    ResponseRequest,
)
from blip3o.serve.http.service import Service
from blip3o.serve.http.turns import TextPart
from blip3o.serve.jobs import ChatRequest, ImageRequest


def response_routes(service: Service) -> APIRouter:
    """Returns the route for responses."""
    router = APIRouter(tags=["responses"], route_class=JsonRoute)
    cache = ItemCache()

    @router.post("/v1/responses", summary="The next turn of a conversation, or an image")
    async def responses(body: ResponseRequest) -> Response:
        job = await response_job(service, body, cache)
        writer = ResponseWriter(service, job, body, cache)
        if body.stream:
            return await event_stream(writer.streamed())
        answer = await writer.complete()
        return GONE if answer is None else JSONResponse(answer)

    return router


async def response_job(
    service: Service, body: ResponseRequest, cache: ItemCache
) -> ChatRequest | ImageRequest:
    """Returns the job for a request.

    The model does not choose between tools: a request that lists the image tool gets an image.

    Raises:
        ApiError: 400, 404 or 413 if the model or the server's limits do not allow it.
    """
    service.check_model(body.model)
    check_stream_options(body)
    if not body.tools and body.tool_choice not in ("auto", "none"):
        raise invalid("tool_choice asks for a tool, but tools is empty", "tool_choice")
    turns = _turns(body, cache)
    check_order(turns, "input")
    if body.tools and body.tool_choice != "none":
        return await _image_job(service, body, turns, body.tools[0])
    limit = ("max_output_tokens", body.max_output_tokens)
    sampling = text_sampling(service, body, limit)
    messages, images = await read_conversation(service, turns, "input")
    return ChatRequest(messages=messages, images=images, sampling=sampling)


async def _image_job(
    service: Service, body: ResponseRequest, turns: list[Turn], tool: ImageTool
) -> ImageRequest:
    service.check_model(tool.model, "tools.0.model")
    check_size(service, tool.size, "tools.0.size")
    if tool.action == "generate":
        if turns[-1].images:
            message = "tools.0.action is generate, but the last turn has an image; use edit"
            raise invalid(message, "tools.0.action")
        return prompted_job(service, body, turns[-1].text.strip(), [], "input")
    text, images = await prompt_and_images(service, turns)
    if tool.action == "edit" and not images:
        message = "tools.0.action is edit, but the input has no image"
        raise invalid(message, "tools.0.action")
    return prompted_job(service, body, text, images, "input")


def _turns(body: ResponseRequest, cache: ItemCache) -> list[Turn]:
    turns: list[Turn] = []
    if body.instructions is not None:
        instructions = [TextPart(type="text", text=body.instructions)]
        turns.append(turn("system", instructions, "instructions"))
    for number, item in enumerate(body.input):
        param = f"input.{number}"
        one = _turn(_resolved(item, cache, param), param)
        # Drops the empty message that ends an answer with an image.
        is_end_of_image = one.role == "assistant" and turns and turns[-1].role == "assistant"
        if not (is_end_of_image and not one.images and not one.text.strip()):
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
    return Turn("assistant", (ImagePlace(url, place),), place)


def _resolved(item: Item, cache: ItemCache, param: str) -> MessageItem | ImageCallItem:
    """Returns an item, or the stored item to which it refers."""
    if not isinstance(item, ItemReference) and (
        isinstance(item, MessageItem) or item.result is not None or item.id is None
    ):
        return item
    held = cache.get(item.id or "")
    if held is None:
        message = f"{param}.id is not the id of a stored item; send the item itself"
        raise invalid(message, f"{param}.id", "item_not_found")
    kind = MessageItem if held["type"] == "message" else ImageCallItem
    return validated(kind, held)
