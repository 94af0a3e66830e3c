"""Writes an answer of `/v1/responses`: its items, its final object, and its stream of events."""

import itertools
import json
import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from blip3o.serve.http.errors import ApiError
from blip3o.serve.http.fields import JsonObject
from blip3o.serve.http.image_routes import preview_steps
from blip3o.serve.http.output import ResultCache, base64_png
from blip3o.serve.http.schemas import ResponseRequest
from blip3o.serve.http.service import Service
from blip3o.serve.jobs import Answered, ChatRequest, Drawn, Event, ImageRequest, Preview, Text

Events = Iterator[JsonObject]
ItemCache = ResultCache[JsonObject]
"""The latest items of answers, for clients that send an id instead of an item."""


class ResponseWriter:
    """Writes one answer: a message, or an image followed by an empty message.

    Clients regard a message as the end of an answer; some repeat the request until they get one.

    Args:
        service: the service.
        job: the job of the request.
        body: the request.
        cache: stores the items, unless the request forbids it.
    """

    def __init__(
        self,
        service: Service,
        job: ChatRequest | ImageRequest,
        body: ResponseRequest,
        cache: ItemCache,
    ) -> None:
        if isinstance(job, ImageRequest) and body.stream:
            job = job.previewed(preview_steps(job, body.tools[0].partial_images))
        self._service, self._job, self._body, self._cache = service, job, body, cache
        self._id, self._created = _new_id("resp"), int(time.time())
        self._numbers = itertools.count()
        self._item_id = _new_id("ig" if isinstance(job, ImageRequest) else "msg")
        self._output: list[JsonObject] = []  # finished items
        self._text, self._held = "", ""
        self._num_previews = 0
        self._end: JsonObject | None = None

    async def complete(self) -> JsonObject | None:
        """Returns the answer, or None if the client disconnected; raises like `events`."""
        async with aclosing(self.events()) as events:
            async for _ in events:
                pass
        return self._end

    async def streamed(self) -> AsyncGenerator[JsonObject]:
        """Yields all events; a failure after the first event is sent as the last event."""
        has_begun = False
        try:
            async with aclosing(self.events()) as events:
                async for event in events:
                    has_begun = True
                    yield event
        except ApiError as error:
            if not has_begun:
                raise
            failure = {"code": "server_error", "message": error.message}
            yield self._event("response.failed", response=self._object("failed", [], error=failure))

    async def events(self) -> AsyncGenerator[JsonObject]:
        """Yields all events.

        Raises:
            ApiError: if the work is refused or fails.
        """
        has_begun = False
        async with self._service.events(self._job) as arriving:
            async for event in arriving:
                if not has_begun:
                    for one in self._beginning():
                        yield one
                    has_begun = True
                for one in await self._next(event):
                    yield one
                if self._end is not None:
                    return

    async def _next(self, event: Event) -> list[JsonObject]:
        if isinstance(event, Text):
            return list(self._add_text(event.piece))
        if isinstance(event, Answered):
            self._service.metrics.answer_tokens(event.answer_tokens)
            return list(self._end_text(event))
        if isinstance(event, Preview) and event.step < self._num_steps:
            return [self._partial_image(await base64_png(event.image))]
        if isinstance(event, Drawn):
            size = f"{event.image.width}x{event.image.height}"
            return list(self._end_image(await base64_png(event.image), size))
        return []

    @property
    def _num_steps(self) -> int:
        return self._job.num_inference_steps if isinstance(self._job, ImageRequest) else 0

    def _beginning(self) -> Events:
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._object("in_progress", []))
        if not isinstance(self._job, ImageRequest):
            yield from self._begin_message()
            return
        yield self._begin_item(_image_item(self._item_id, "in_progress", None))
        for state in ("in_progress", "generating"):
            yield self._item_event(f"image_generation_call.{state}")

    def _begin_message(self) -> Events:
        yield self._begin_item(_message_item(self._item_id, "in_progress", []))
        yield self._item_event("content_part.added", content_index=0, part=_text_part(""))

    def _add_text(self, piece: str) -> Events:
        """Yields a piece of text; trailing white space is held back until more text follows."""
        piece = self._held + piece
        if not self._text:
            piece = piece.lstrip()
        ready = piece.rstrip()
        self._held = piece[len(ready) :]
        if ready:
            self._text += ready
            yield self._item_event("output_text.delta", content_index=0, delta=ready, logprobs=[])

    def _end_message(self, status: str) -> Events:
        part = _text_part(self._text)
        yield self._item_event("output_text.done", content_index=0, text=self._text, logprobs=[])
        yield self._item_event("content_part.done", content_index=0, part=part)
        yield self._end_item(_message_item(self._item_id, status, [part]))

    def _end_text(self, answered: Answered) -> Events:
        is_complete = answered.reason == "stop"
        status = "completed" if is_complete else "incomplete"
        yield from self._end_message(status)
        details = None if is_complete else {"reason": "max_output_tokens"}
        usage = _usage(answered.prompt_tokens, answered.answer_tokens)
        yield self._end_response(status, incomplete_details=details, usage=usage)

    def _partial_image(self, data: str) -> JsonObject:
        number, self._num_previews = self._num_previews, self._num_previews + 1
        return self._item_event(
            "image_generation_call.partial_image",
            partial_image_index=number,
            partial_image_b64=data,
            output_format="png",
        )

    def _end_image(self, data: str, size: str) -> Events:
        job = self._job
        assert isinstance(job, ImageRequest), "only image requests give images"
        yield self._item_event("image_generation_call.completed")
        action = "edit" if job.kind == "edit" else "generate"
        facts = {"size": size, "background": "opaque", "action": action}
        yield self._end_item(_image_item(self._item_id, "completed", data, **facts))
        self._item_id = _new_id("msg")
        yield from self._begin_message()
        yield from self._end_message("completed")
        yield self._end_response("completed", usage=_usage(len(job.prompt), 0))

    def _begin_item(self, item: JsonObject) -> JsonObject:
        place = len(self._output)
        return self._event("response.output_item.added", item=item, output_index=place)

    def _end_item(self, item: JsonObject) -> JsonObject:
        if self._body.store is not False:
            self._cache.put(self._item_id, item, len(json.dumps(item)))
        event = self._event("response.output_item.done", item=item, output_index=len(self._output))
        self._output.append(item)
        return event

    def _end_response(self, status: str, **facts: object) -> JsonObject:
        self._end = self._object(status, self._output, **facts)
        return self._event(f"response.{status}", response=self._end)

    def _event(self, kind: str, **fields: object) -> JsonObject:
        return {"type": kind, "sequence_number": next(self._numbers), **fields}

    def _item_event(self, kind: str, **fields: object) -> JsonObject:
        place = {"item_id": self._item_id, "output_index": len(self._output)}
        return self._event(f"response.{kind}", **place, **fields)

    def _object(self, status: str, output: list[JsonObject], **facts: object) -> JsonObject:
        body, job = self._body, self._job
        sampling = None if isinstance(job, ImageRequest) else job.sampling
        seed = job.seed if isinstance(job, ImageRequest) else job.sampling.seed
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self._service.name,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": body.temperature if sampling is None else sampling.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": body.tool_choice,
            "tools": [tool.model_dump(exclude_none=True) for tool in body.tools],
            "top_p": body.top_p if sampling is None else sampling.top_p,
            "truncation": body.truncation,
            "usage": None,
            "user": body.user,
            **({} if seed is None else {"seed": seed}),
            **facts,
        }


def _new_id(prefix: str) -> str:
    """Returns an id that cannot be guessed."""
    return f"{prefix}_{secrets.token_hex(16)}"


def _message_item(item_id: str, status: str, parts: list[JsonObject]) -> JsonObject:
    """Returns the item of a text; status is "in_progress", "completed" or "incomplete"."""
    kind = {"id": item_id, "type": "message", "role": "assistant"}
    return {**kind, "status": status, "content": parts}


def _text_part(text: str) -> JsonObject:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _image_item(item_id: str, status: str, result: str | None, **facts: str) -> JsonObject:
    """Returns the item of an image; `result` is a PNG file in base64 once it is finished."""
    kind = {"id": item_id, "type": "image_generation_call"}
    return {**kind, "status": status, "result": result, "output_format": "png", **facts}


def _usage(prompt: int, answer: int) -> JsonObject:
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": answer,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + answer,
    }
