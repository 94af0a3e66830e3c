"""`/v1/chat/completions`: answers about text and images, or images as answers."""

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from blip3o.serve.http.conversation import (
    Turn,
    check_order,
    prompt_and_images,
    read_conversation,
    turn,
)
from blip3o.serve.http.errors import invalid
from blip3o.serve.http.fields import JsonObject
from blip3o.serve.http.json_in import JsonRoute
from blip3o.serve.http.output import GONE, base64_png, event_stream
from blip3o.serve.http.request_jobs import (
    check_number,
    check_stream_options,
    prompted_job,
    text_sampling,
)
from blip3o.serve.http.schemas import ChatCompletionRequest
from blip3o.serve.http.service import Service
from blip3o.serve.http.turns import ChatMessage, RefusalPart
from blip3o.serve.jobs import Answered, ChatRequest, Drawn, ImageRequest, Text

Content = str | list[JsonObject]
Parts = AsyncGenerator[tuple[int, Content | Answered]]
"""Numbers of answers, each with its next content or its end."""


def completion_routes(service: Service) -> APIRouter:
    """Returns the route for chat completions."""
    router = APIRouter(tags=["chat"], route_class=JsonRoute)

    @router.post("/v1/chat/completions", summary="The next turn of a conversation")
    async def completions(body: ChatCompletionRequest) -> Response:
        job = await completion_job(service, body)
        parts = _parts(service, job)
        if body.stream:
            head = _head(service, "chat.completion.chunk", job)
            return await event_stream(_chunks(head, parts, body), is_ended=True)
        return await _complete(_head(service, "chat.completion", job), parts, job.count)

    return router


async def completion_job(
    service: Service, body: ChatCompletionRequest
) -> ChatRequest | ImageRequest:
    """Returns the job for the next turn of a conversation.

    Raises:
        ApiError: 400, 404 or 413 if the model or the server's limits do not allow it.
    """
    service.check_model(body.model)
    check_number(service, body.n)
    check_stream_options(body)
    turns = [_turn(one, f"messages.{number}") for number, one in enumerate(body.messages)]
    check_order(turns, "messages")
    limit = _limit(body)
    if "image" in body.modalities:
        text, images = await prompt_and_images(service, turns)
        return prompted_job(service, body, text, images, "messages", body.n)
    sampling = text_sampling(service, body, limit, tuple(body.stop))
    messages, images = await read_conversation(service, turns, "messages")
    return ChatRequest(messages=messages, images=images, sampling=sampling, count=body.n)


def _limit(body: ChatCompletionRequest) -> tuple[str, int | None]:
    """Returns the name and the value of the field that limits the tokens of an answer."""
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise invalid("give max_tokens or max_completion_tokens, not both", "max_tokens")
    return ("max_tokens", old) if new is None else ("max_completion_tokens", new)


def _turn(message: ChatMessage, param: str) -> Turn:
    parts = list(message.content)
    if message.refusal is not None:
        parts.append(RefusalPart(type="refusal", refusal=message.refusal))
    return turn(message.role, parts, f"{param}.content")


async def _parts(service: Service, job: ChatRequest | ImageRequest) -> Parts:
    left = job.count
    async with service.events(job) as events:
        async for event in events:
            if isinstance(event, Text):
                yield event.index, event.piece
            elif isinstance(event, Drawn):
                uri = f"data:image/png;base64,{await base64_png(event.image)}"
                yield event.index, [{"type": "image_url", "image_url": {"url": uri}}]
                num_tokens = len(job.prompt) if isinstance(job, ImageRequest) else 0
                yield event.index, Answered("stop", num_tokens, 0, event.index)
                left -= 1
            elif isinstance(event, Answered):
                service.metrics.answer_tokens(event.answer_tokens)
                yield event.index, event
                left -= 1
            if not left:
                return


async def _complete(head: JsonObject, parts: Parts, count: int) -> Response:
    texts = [""] * count
    images: dict[int, list[JsonObject]] = {}
    ends: dict[int, Answered] = {}
    async for index, part in parts:
        if isinstance(part, Answered):
            ends[index] = part
        elif isinstance(part, str):
            texts[index] += part
        else:
            images[index] = part
    if len(ends) < count:
        return GONE
    choices = [
        {
            "index": index,
            "message": {
                "role": "assistant",
                "content": images.get(index, texts[index].strip()),
                "refusal": None,
            },
            "finish_reason": ends[index].reason,
            "logprobs": None,
        }
        for index in range(count)
    ]
    return JSONResponse({**head, "choices": choices, "usage": _usage(list(ends.values()))})


async def _chunks(
    head: JsonObject, parts: Parts, body: ChatCompletionRequest
) -> AsyncGenerator[JsonObject]:
    def chunk(index: int, delta: JsonObject, reason: str | None = None) -> JsonObject:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**head, "choices": [choice]}

    begun: set[int] = set()
    ends: list[Answered] = []
    async with aclosing(parts):
        async for index, part in parts:
            role: JsonObject = {} if index in begun else {"role": "assistant"}
            begun.add(index)
            if isinstance(part, Answered):
                ends.append(part)
                yield chunk(index, role, part.reason)
            else:
                yield chunk(index, {**role, "content": part})
    if len(ends) == body.n and body.stream_options and body.stream_options.include_usage:
        yield {**head, "choices": [], "usage": _usage(ends)}


def _head(service: Service, kind: str, job: ChatRequest | ImageRequest) -> JsonObject:
    """Returns the first fields of every object of an answer, with the seed if one is used."""
    seed = job.seed if isinstance(job, ImageRequest) else job.sampling.seed
    return {
        **({} if seed is None else {"seed": seed}),
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": service.name,
    }


def _usage(answered: Sequence[Answered]) -> JsonObject:
    """Returns the token counts of all answers to one prompt."""
    prompt, answers = answered[0].prompt_tokens, sum(one.answer_tokens for one in answered)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answers,
        "total_tokens": prompt + answers,
    }
