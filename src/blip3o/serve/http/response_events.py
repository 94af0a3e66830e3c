"""An answer of `/v1/responses` while it is made: its object, and the events of its stream."""

import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request

from blip3o.serve.http.errors import ApiError
from blip3o.serve.http.images import encoded, preview_steps
from blip3o.serve.http.response_items import (
    ItemShelf,
    image_item,
    message_item,
    new_id,
    text_part,
)
from blip3o.serve.http.response_schemas import ResponseRequest
from blip3o.serve.http.service import Service
from blip3o.serve.jobs import Answered, ChatRequest, Drawn, Event, ImageRequest, Preview, Text

Events = Iterator[dict[str, Any]]


class ResponseWriter:
    """Makes one answer: a message, or an image and then a message without words.

    Clients take a message for the end of an answer; some ask again until there is one.

    Args:
        service: does the work.
        job: what to do.
        body: what was asked.
        shelf: where the items are kept, unless the request says that nothing is to be stored.
    """

    def __init__(
        self,
        service: Service,
        job: ChatRequest | ImageRequest,
        body: ResponseRequest,
        shelf: ItemShelf,
    ) -> None:
        if isinstance(job, ImageRequest) and body.stream:
            job = job.previewed(preview_steps(job, body.tools[0].partial_images))
        self._service, self._job, self._body, self._shelf = service, job, body, shelf
        self._id, self._created = new_id("resp"), int(time.time())
        self._numbers = itertools.count()
        self._name = new_id("ig" if isinstance(job, ImageRequest) else "msg")
        self._output: list[dict[str, Any]] = []  # items that are whole
        self._text, self._held = "", ""
        self._num_previews = 0
        self._end: dict[str, Any] | None = None

    async def whole(self, request: Request) -> dict[str, Any] | None:
        """Returns the answer, or None if its client went away.

        Raises:
            ApiError: if the work is refused or fails.
        """
        async with aclosing(self.events(request)) as events:  # type: ignore[type-var]
            async for _ in events:
                pass
        return self._end

    async def streamed(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        """Yields all events; a failure after the first is the last of them.

        Raises:
            ApiError: if the work is refused or fails before the first event.
        """
        is_begun = False
        try:
            async with aclosing(self.events(request)) as events:  # type: ignore[type-var]
                async for event in events:
                    is_begun = True
                    yield event
        except ApiError as error:
            if not is_begun:
                raise
            failure = {"code": "server_error", "message": error.message}
            yield self._event("response.failed", response=self._object("failed", [], error=failure))

    async def events(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        """Yields all events.

        Raises:
            ApiError: if the work is refused or fails.
        """
        is_begun = False
        async with aclosing(self._service.events(self._job, request)) as arriving:
            async for event in arriving:
                if not is_begun:
                    for one in self._beginning():
                        yield one
                    is_begun = True
                for one in await self._next(event):
                    yield one
                if self._end is not None:
                    return

    async def _next(self, event: Event) -> list[dict[str, Any]]:
        if isinstance(event, Text):
            return list(self._said(event.piece))
        if isinstance(event, Answered):
            self._service.metrics.answer_tokens(event.answer_tokens)
            return list(self._end_of_text(event))
        if isinstance(event, Preview) and event.step < self._most_steps:
            return [self._partial(await encoded(event.image))]
        if isinstance(event, Drawn):
            size = f"{event.image.width}x{event.image.height}"
            return list(self._end_of_image(await encoded(event.image), size))
        return []

    @property
    def _most_steps(self) -> int:
        return self._job.num_inference_steps if isinstance(self._job, ImageRequest) else 0

    def _beginning(self) -> Events:
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._object("in_progress", []))
        if not isinstance(self._job, ImageRequest):
            yield from self._begin_message()
            return
        yield self._begun(image_item(self._name, "in_progress", None))
        for state in ("in_progress", "generating"):
            yield self._of_item(f"image_generation_call.{state}")

    def _begin_message(self) -> Events:
        yield self._begun(message_item(self._name, "in_progress", []))
        yield self._of_item("content_part.added", content_index=0, part=text_part(""))

    def _said(self, piece: str) -> Events:
        """Yields a piece of text; white space waits until something stands after it."""
        piece = self._held + piece
        if not self._text:
            piece = piece.lstrip()
        ready = piece.rstrip()
        self._held = piece[len(ready) :]
        if ready:
            self._text += ready
            yield self._of_item("output_text.delta", content_index=0, delta=ready, logprobs=[])

    def _end_message(self, status: str) -> Events:
        part = text_part(self._text)
        yield self._of_item("output_text.done", content_index=0, text=self._text, logprobs=[])
        yield self._of_item("content_part.done", content_index=0, part=part)
        yield self._done(message_item(self._name, status, [part]))

    def _end_of_text(self, answered: Answered) -> Events:
        is_whole = answered.reason == "stop"
        status = "completed" if is_whole else "incomplete"
        yield from self._end_message(status)
        details = None if is_whole else {"reason": "max_output_tokens"}
        usage = _usage(answered.prompt_tokens, answered.answer_tokens)
        yield self._ended(status, incomplete_details=details, usage=usage)

    def _partial(self, data: str) -> dict[str, Any]:
        number, self._num_previews = self._num_previews, self._num_previews + 1
        return self._of_item(
            "image_generation_call.partial_image",
            partial_image_index=number,
            partial_image_b64=data,
            output_format="png",
        )

    def _end_of_image(self, data: str, size: str) -> Events:
        job = self._job
        assert isinstance(job, ImageRequest), "only those make images"
        yield self._of_item("image_generation_call.completed")
        action = "edit" if job.kind == "edit" else "generate"
        facts = {"size": size, "background": "opaque", "action": action}
        yield self._done(image_item(self._name, "completed", data, **facts))
        self._name = new_id("msg")
        yield from self._begin_message()
        yield from self._end_message("completed")
        yield self._ended("completed", usage=_usage(len(job.prompt), 0))

    def _begun(self, item: dict[str, Any]) -> dict[str, Any]:
        place = len(self._output)
        return self._event("response.output_item.added", item=item, output_index=place)

    def _done(self, item: dict[str, Any]) -> dict[str, Any]:
        if self._body.store is not False:
            self._shelf.put(item["id"], item, len(json.dumps(item)))
        event = self._event("response.output_item.done", item=item, output_index=len(self._output))
        self._output.append(item)
        return event

    def _ended(self, status: str, **facts: Any) -> dict[str, Any]:  # noqa: ANN401
        self._end = self._object(status, self._output, **facts)
        return self._event(f"response.{status}", response=self._end)

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401
        return {"type": kind, "sequence_number": next(self._numbers), **fields}

    def _of_item(self, kind: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401
        place = {"item_id": self._name, "output_index": len(self._output)}
        return self._event(f"response.{kind}", **place, **fields)

    def _object(
        self,
        status: str,
        output: list[dict[str, Any]],
        **facts: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
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


def _usage(prompt: int, answer: int) -> dict[str, Any]:
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": answer,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + answer,
    }
