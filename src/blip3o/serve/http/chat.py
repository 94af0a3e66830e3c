"""`/v1/chat/completions`: answers about text and images, and images as answers."""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image
from starlette.responses import JSONResponse, Response

from blip3o.serve.http.conversation import (
    Turn,
    check_order,
    drawn_from,
    read_conversation,
    turn,
)
from blip3o.serve.http.errors import invalid
from blip3o.serve.http.fields import TextSettings
from blip3o.serve.http.images import check_count_made, edit_prompt, encoded, sampled
from blip3o.serve.http.json_in import JsonRoute
from blip3o.serve.http.schemas import ChatCompletionRequest, ChatMessage
from blip3o.serve.http.service import Service
from blip3o.serve.http.settings import text_sampling
from blip3o.serve.http.sse import GONE, event_stream
from blip3o.serve.http.turns import RefusalPart
from blip3o.serve.jobs import Answered, ChatRequest, Drawn, ImageRequest, Text


def chat_routes(service: Service) -> APIRouter:
    """Returns the route for chats."""
    router = APIRouter(tags=["chat"], route_class=JsonRoute)

    @router.post("/v1/chat/completions", summary="The next turn of a conversation")
    async def completions(body: ChatCompletionRequest, request: Request) -> Response:
        job = await chat_job(service, body)
        parts = _parts(service, job, request)
        if body.stream:
            head = _head(service, "chat.completion.chunk", job)
            return await event_stream(_chunks(head, parts, body), is_ended=True)
        return await _whole(_head(service, "chat.completion", job), parts, job.count)

    return router


async def chat_job(service: Service, body: ChatCompletionRequest) -> ChatRequest | ImageRequest:
    """Returns the work that the next turn of a conversation asks for.

    Raises:
        ApiError: 400, 404 or 413 for what the model or the server's limits do not allow.
    """
    service.check_model(body.model)
    check_count_made(service, body.n)
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options is for streamed answers", "stream_options")
    turns = [_turn(one, f"messages.{number}") for number, one in enumerate(body.messages)]
    check_order(turns, "messages")
    limit = _limit(body)
    if "image" in body.modalities:
        text, images = await drawn_from(service, turns)
        return image_job(service, body, text, images, "messages", body.n)
    sampling = text_sampling(service, body, limit, tuple(body.stop))
    messages, images = await read_conversation(service, turns, "messages")
    service.check_chat(messages, images)
    return ChatRequest(messages=messages, images=images, sampling=sampling, count=body.n)


def image_job(
    service: Service,
    body: TextSettings,
    text: str,
    images: Sequence[Image.Image],
    param: str,
    count: int = 1,
) -> ImageRequest:
    """Returns the request for an image of a text, or for an edit of images.

    Args:
        service: knows the model.
        body: says the seed, the steps and the guidance.
        text: what to draw, or what to change.
        images: the first is changed and all are seen; a new image is drawn if there are none.
        param: the field that holds the conversation.
        count: images to draw.

    Raises:
        ApiError: 400 for a text that is empty or too long, or too many steps.
    """
    if images:
        prompt = edit_prompt(service, text, len(images), param)
        return sampled(service, "edit", body, prompt, list(images), count)
    prompt = service.prompt(service.chat_template.generate_messages(text), text, param)
    return sampled(service, "generate", body, prompt, [], count)


def _limit(body: ChatCompletionRequest) -> tuple[str, int | None]:
    """Returns the name and the value of the field with the most tokens of an answer."""
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise invalid("give max_tokens or max_completion_tokens, not both", "max_tokens")
    return ("max_tokens", old) if new is None else ("max_completion_tokens", new)


def _turn(message: ChatMessage, param: str) -> Turn:
    parts = list(message.content)
    if message.refusal is not None:
        parts.append(RefusalPart(type="refusal", refusal=message.refusal))
    return turn(message.role, parts, f"{param}.content")


async def _parts(
    service: Service, job: ChatRequest | ImageRequest, request: Request
) -> AsyncIterator[tuple[int, Any]]:
    """Yields the numbers of answers with what comes next of them: content, or `Answered`."""
    left = job.count
    async with aclosing(service.events(job, request)) as events:
        async for event in events:
            if isinstance(event, Text):
                yield event.index, event.piece
            elif isinstance(event, Drawn):
                uri = f"data:image/png;base64,{await encoded(event.image)}"
                yield event.index, [{"type": "image_url", "image_url": {"url": uri}}]
                num_tokens = len(getattr(job, "prompt", ()))
                yield event.index, Answered("stop", num_tokens, 0, event.index)
                left -= 1
            elif isinstance(event, Answered):
                service.metrics.answer_tokens(event.answer_tokens)
                yield event.index, event
                left -= 1
            if not left:
                return


async def _whole(
    head: dict[str, Any], parts: AsyncIterator[tuple[int, Any]], count: int
) -> Response:
    contents: list[Any] = [None] * count
    ends: list[Answered | None] = [None] * count
    async for index, part in parts:
        if isinstance(part, Answered):
            ends[index] = part
        else:
            before = contents[index]
            contents[index] = part if before is None else before + part
    answered = [end for end in ends if end is not None]
    if len(answered) < count:
        return GONE
    choices = [
        {
            "index": end.index,
            "message": {"role": "assistant", "content": _content(content), "refusal": None},
            "finish_reason": end.reason,
            "logprobs": None,
        }
        for end, content in zip(answered, contents, strict=True)
    ]
    return JSONResponse({**head, "choices": choices, "usage": _usage(answered)})


def _content(content: Any) -> Any:  # noqa: ANN401  (text, or the parts of an image)
    return content.strip() if isinstance(content, str) else content or ""


async def _chunks(
    head: dict[str, Any], parts: AsyncIterator[tuple[int, Any]], body: ChatCompletionRequest
) -> AsyncIterator[dict[str, Any]]:
    def chunk(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**head, "choices": [choice]}

    begun: set[int] = set()
    ends: list[Answered] = []
    async with aclosing(parts):  # type: ignore[type-var]
        async for index, part in parts:
            role = {} if index in begun else {"role": "assistant"}
            begun.add(index)
            if isinstance(part, Answered):
                ends.append(part)
                yield chunk(index, role, part.reason)
            else:
                yield chunk(index, {**role, "content": part})
    if len(ends) == body.n and body.stream_options and body.stream_options.include_usage:
        yield {**head, "choices": [], "usage": _usage(ends)}


def _head(service: Service, kind: str, job: ChatRequest | ImageRequest) -> dict[str, Any]:
    """Returns the first fields of all objects of an answer; with the seed, if one was used."""
    seed = job.seed if isinstance(job, ImageRequest) else job.sampling.seed
    return {
        **({} if seed is None else {"seed": seed}),
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": service.name,
    }


def _usage(answered: Sequence[Answered]) -> dict[str, int]:
    """Returns the tokens of all answers to one prompt."""
    prompt, answers = answered[0].prompt_tokens, sum(one.answer_tokens for one in answered)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answers,
        "total_tokens": prompt + answers,
    }
