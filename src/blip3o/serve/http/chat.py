"""`/v1/chat/completions`: answers about text and pictures, and pictures as answers."""

import asyncio
import base64
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image
from starlette.responses import JSONResponse, Response

from blip3o.core.types import IMAGE_MARK, Message
from blip3o.generate.text_sampling import TextSampling
from blip3o.serve.http.errors import invalid
from blip3o.serve.http.forms import check_count
from blip3o.serve.http.images import edit_prompt, sampled
from blip3o.serve.http.pictures_out import png
from blip3o.serve.http.schemas import ChatCompletionRequest, ChatMessage, TextPart
from blip3o.serve.http.service import Service
from blip3o.serve.http.sse import GONE, event_stream
from blip3o.serve.jobs import Answered, ChatRequest, Picture, PictureRequest, Text
from blip3o.text.chat import said_back

_PICTURE_ONLY = ("seed", "num_inference_steps", "guidance_scale")
_TEXT_ONLY = ("max_tokens", "max_completion_tokens")


def chat_routes(service: Service) -> APIRouter:
    """Returns the route for chats."""
    router = APIRouter(tags=["chat"])

    @router.post("/v1/chat/completions", summary="The next turn of a conversation")
    async def completions(body: ChatCompletionRequest, request: Request) -> Response:
        job = await chat_job(service, body)
        deltas = _deltas(service, job, request)
        if body.stream:
            head = _head(service, "chat.completion.chunk", job)
            return await event_stream(_chunks(head, deltas, body), is_ended=True)
        return await _whole(_head(service, "chat.completion", job), deltas)

    return router


async def chat_job(service: Service, body: ChatCompletionRequest) -> ChatRequest | PictureRequest:
    """Returns the work that the next turn of a conversation asks for.

    Raises:
        ApiError: 400, 404 or 413 for what the model or the server's limits do not allow.
    """
    _check(service, body)
    messages, pictures = await _conversation(service, body)
    if "image" in body.modalities:
        return _picture_request(service, body, messages, pictures)
    service.check_chat(messages, pictures)
    limit = body.max_tokens or body.max_completion_tokens or service.sampling.max_new_tokens
    return ChatRequest(
        messages=messages,
        pictures=pictures,
        sampling=TextSampling(max_new_tokens=min(limit, service.config.max_answer_tokens)),
    )


def _check(service: Service, body: ChatCompletionRequest) -> None:
    service.check_model(body.model)
    wants_picture = "image" in body.modalities
    for name in _TEXT_ONLY if wants_picture else _PICTURE_ONLY:
        if getattr(body, name) is not None:
            other = "text" if wants_picture else 'pictures: add "image" to the modalities'
            raise invalid(f"{name} is for {other}", name)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise invalid("give max_tokens or max_completion_tokens, not both", "max_tokens")
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options is for streamed answers", "stream_options")
    limit = body.max_tokens or body.max_completion_tokens or 0
    if limit > service.config.max_answer_tokens:
        most = service.config.max_answer_tokens
        name = "max_completion_tokens" if body.max_tokens is None else "max_tokens"
        raise invalid(f"at most {most} tokens are written, not {limit}", name)
    if body.messages[-1].role != "user":
        raise invalid("the last message must be the user's", "messages")
    for place, message in enumerate(body.messages):
        if message.role == "system" and place > 0:
            raise invalid("a system message comes first", f"messages.{place}.role")


async def _conversation(
    service: Service, body: ChatCompletionRequest
) -> tuple[list[Message], list[Image.Image]]:
    """Returns the turns with a mark for each picture, and the pictures."""
    messages: list[Message] = []
    places: list[tuple[str, str]] = []  # the URL of each picture, and where it stands
    for number, message in enumerate(body.messages):
        text, urls = _turn(message, f"messages.{number}.content")
        places += urls
        messages.append(Message(role=message.role, text=text))
    check_count(len(places), service.config, "messages")
    pictures = [await service.reader.from_url(url, param) for url, param in places]
    return messages, pictures


def _turn(message: ChatMessage, param: str) -> tuple[str, list[tuple[str, str]]]:
    parts = message.content
    if isinstance(parts, str):
        parts = [TextPart(type="text", text=parts)]
    pieces: list[str] = []
    urls: list[tuple[str, str]] = []
    is_answer = message.role == "assistant"  # clients send answers back as they were given
    for number, part in enumerate(parts):
        if isinstance(part, TextPart) and is_answer:
            pieces.append(said_back(part.text))
        elif isinstance(part, TextPart):
            if IMAGE_MARK in part.text:
                raise invalid(f"{IMAGE_MARK} in a text; send pictures as parts", param)
            pieces.append(part.text)
        elif message.role != "user":
            raise invalid(f"a picture in a turn of the {message.role}; only users send them", param)
        else:
            pieces.append(IMAGE_MARK)
            urls.append((part.image_url.url, f"{param}.{number}.image_url.url"))
    text = "\n".join(pieces)
    if not text.strip() and not is_answer:
        raise invalid("a message says nothing", param)
    return text, urls


def _picture_request(
    service: Service,
    body: ChatCompletionRequest,
    messages: list[Message],
    pictures: list[Image.Image],
) -> PictureRequest:
    """Returns the picture that the last message asks for: of its text, or of its pictures."""
    last = messages[-1].text
    if last.count(IMAGE_MARK) != len(pictures):
        raise invalid("for a picture, send pictures in the last message only", "messages")
    text = last.replace(IMAGE_MARK, "").strip()
    if pictures:
        prompt = edit_prompt(service, text, len(pictures), "messages")
        return sampled(service, "edit", body, prompt, pictures)
    prompt = service.prompt(service.chat_template.generate_messages(text), text, "messages")
    picture = body.model_copy(update={"n": 1})
    return sampled(service, "generate", picture, prompt, [])


async def _deltas(
    service: Service, job: ChatRequest | PictureRequest, request: Request
) -> AsyncIterator[Any]:
    """Yields what an answer is made of: texts, or the parts of a picture; then `Answered`."""
    async with aclosing(service.events(job, request)) as events:
        async for event in events:
            if isinstance(event, Text):
                yield event.piece
            elif isinstance(event, Picture):
                data = await asyncio.to_thread(png, event.image)
                uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
                yield [{"type": "image_url", "image_url": {"url": uri}}]
                yield Answered("stop", len(getattr(job, "prompt", ())), 0)
                return
            elif isinstance(event, Answered):
                service.metrics.answer_tokens(event.answer_tokens)
                yield event
                return


async def _whole(head: dict[str, Any], deltas: AsyncIterator[Any]) -> Response:
    content: Any = None
    async for delta in deltas:
        if isinstance(delta, Answered):
            content = content.strip() if isinstance(content, str) else content
            message = {"role": "assistant", "content": "" if content is None else content}
            choice = {"index": 0, "message": message, "finish_reason": delta.reason}
            return JSONResponse(
                {**head, "choices": [{**choice, "logprobs": None}], "usage": _usage(delta)}
            )
        content = delta if content is None else content + delta
    return GONE


async def _chunks(
    head: dict[str, Any], deltas: AsyncIterator[Any], body: ChatCompletionRequest
) -> AsyncIterator[dict[str, Any]]:
    def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    is_first = True
    async with aclosing(deltas):  # type: ignore[type-var]
        async for delta in deltas:
            role = {"role": "assistant"} if is_first else {}
            is_first = False
            if not isinstance(delta, Answered):
                yield chunk({**role, "content": delta})
                continue
            yield chunk(role, delta.reason)
            if body.stream_options is not None and body.stream_options.include_usage:
                yield {**head, "choices": [], "usage": _usage(delta)}


def _head(service: Service, kind: str, job: ChatRequest | PictureRequest) -> dict[str, Any]:
    return {
        **({"seed": job.seed} if isinstance(job, PictureRequest) else {}),
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": service.name,
    }


def _usage(answered: Answered) -> dict[str, int]:
    return {
        "prompt_tokens": answered.prompt_tokens,
        "completion_tokens": answered.answer_tokens,
        "total_tokens": answered.prompt_tokens + answered.answer_tokens,
    }
