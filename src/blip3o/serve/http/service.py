"""Connects routes and engines: a request becomes a job, and its events come back."""

import asyncio
import contextlib
import math
import os
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.core.types import Message
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.generate.requests import drawing_prompt
from blip3o.models.unified import UnifiedModelConfig
from blip3o.serve.batching import JobQueue, QueueClosedError, QueueFullError
from blip3o.serve.config import ServeConfig
from blip3o.serve.engine import Engine
from blip3o.serve.http.errors import ApiError, busy, invalid
from blip3o.serve.http.image_reader import ImageReader
from blip3o.serve.http.metrics import Metrics
from blip3o.serve.http.output import ResultCache
from blip3o.serve.http.workers import CLIENT_LEFT
from blip3o.serve.jobs import ChatRequest, Event, Failed, ImageRequest, Job
from blip3o.text.chat import ChatTemplate

_MOST_CHARACTERS_PER_TOKEN = 50
"""More than the average of any real text, but low enough to limit the time of tokenizing."""


class Service:
    """Shared state of all routes: engines, queue, limits and metrics.

    Args:
        pipes: one pipeline for each engine.
        name: name of the model for clients.
        config: limits and sizes.
        num_threads: CPU threads of each engine.
    """

    def __init__(
        self,
        pipes: Sequence[Blip3oPipeline],
        name: str,
        config: ServeConfig,
        num_threads: int | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self.names = tuple(dict.fromkeys((name, *config.model_alias)))
        self.metrics = Metrics()
        self.reader = ImageReader(config, _seen_px(pipes[0].model.config))
        self.url_images: ResultCache[bytes] = ResultCache()  # images that URLs point to
        self.queue = JobQueue(
            config.max_queue,
            config.max_batch,
            config.max_wait_ms / 1000,
            config.max_queue_pixels,
        )
        self.engines = [
            Engine(pipe, self.queue, config, self.metrics, num_threads) for pipe in pipes
        ]
        # Routes use only the constant parts of a pipeline: tokenizer, chat template and sizes.
        self._pipe = pipes[0]
        self.sampling = self._pipe.model.config.sampling
        self.guidance = self._pipe.model.config.guidance
        self.is_guided = self._pipe.model.config.generator.is_guided
        self.image_px = self._pipe.model.config.image_decoder.image_px
        self._num_open = 0
        self.metrics.watch("queue_size", "Waiting requests", lambda: len(self.queue))
        self.metrics.watch("open_requests", "Unfinished requests", lambda: self._num_open)
        self.metrics.watch(
            "held_pixels", "Pixels of input images", lambda: self.reader.budget.num_pixels
        )
        self.metrics.watch("ready", "1 if requests are accepted", lambda: float(self.is_ready))

    def start(self) -> None:
        """Starts the engines and returns when they are ready.

        Raises:
            UsageError: if an engine cannot start.
        """
        for engine in self.engines:
            engine.start()
        for engine in self.engines:
            engine.wait_until_ready()
        if not self.is_live:
            raise UsageError("the engine did not start; the lines above say why")

    def stop(self) -> None:
        """Finishes the waiting jobs and stops the engines."""
        self.queue.close()
        for engine in self.engines:
            engine.join()

    @property
    def is_live(self) -> bool:
        """Whether every engine is ready."""
        return all(engine.is_ready for engine in self.engines)

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted."""
        return self.is_live and self.queue.closed is None

    @property
    def chat_template(self) -> ChatTemplate:
        """The model's chat template."""
        return self._pipe.chat_template

    def check_model(self, name: str | None, param: str = "model") -> None:
        """Raises an `ApiError` with status 404 for a name that the model does not have."""
        if name is not None and name not in self.names:
            raise ApiError(
                404,
                f"the model {name!r:.100} is not served here; use {self.name!r}, or start the "
                "server with blip3o serve --model-alias NAME to allow this name",
                param=param,
                code="model_not_found",
            )

    def prompt(self, messages: Sequence[Message], text: str, param: str) -> list[int]:
        """Returns the token ids of a prompt for an image.

        Raises:
            ApiError: 400 if it is empty, too long, or contains a reserved mark.
        """
        pipe = self._pipe
        self._check_characters(len(text), param)
        try:
            row = drawing_prompt(pipe.model, pipe.chat_template, messages, text)
        except UsageError as error:
            raise invalid(str(error), param) from error
        limit = self.config.max_prompt_tokens
        if len(row) > limit:
            raise invalid(f"the prompt has {len(row)} tokens; at most {limit} are allowed", param)
        return row

    def check_chat(
        self, messages: Sequence[Message], images: Sequence[Image.Image], param: str
    ) -> None:
        """Checks the length of a conversation, counted in the tokens that the model reads.

        Raises:
            ApiError: 400 if it is too long or contains a reserved mark.
        """
        self._check_characters(sum(len(message.text) for message in messages), param)
        config = self._pipe.model.config
        limit = min(self.config.max_prompt_tokens, config.max_prompt_tokens)
        try:
            length = self._pipe.prompt_length(messages, [image.size for image in images])
        except UsageError as error:
            raise invalid(str(error), param) from error
        if length > limit:
            message = f"the conversation has {length} tokens; at most {limit} fit"
            raise invalid(message, param, "context_length_exceeded")

    def _check_characters(self, count: int, param: str) -> None:
        """Refuses a much too long text; tokenizing it would delay all other requests."""
        limit = _MOST_CHARACTERS_PER_TOKEN * self.config.max_prompt_tokens
        if count > limit:
            message = f"{count} characters of text; at most {limit} are allowed"
            raise invalid(message, param, "context_length_exceeded")

    def events(self, request: ImageRequest | ChatRequest) -> aclosing[AsyncGenerator[Event]]:
        """Returns a context manager that submits a request and gives its events.

        Leaving the context cancels the job. The events end early if the client disconnects. They
        raise `ApiError`: 429 if the queue is full, 503 if no requests are accepted, 504 after the
        time limit, 400 or 500 if the job fails.
        """
        return aclosing(self._events(request))

    async def _events(self, request: ImageRequest | ChatRequest) -> AsyncGenerator[Event]:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Event | None] = asyncio.Queue()

        def deliver(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(arrived.put_nowait, event)

        job = Job(request, deliver)
        self._put(job)
        self._num_open += 1
        left = CLIENT_LEFT.get()
        watcher = None if left is None else asyncio.create_task(_end_events(left, arrived))
        try:
            end = loop.time() + self.config.timeout_s
            while True:
                event = await asyncio.wait_for(arrived.get(), end - loop.time())
                if event is None:
                    return
                if isinstance(event, Failed):
                    raise _as_error(event)
                yield event
        except TimeoutError as error:
            message = f"not done within {self.config.timeout_s:g} seconds"
            raise ApiError(504, message, code="timeout") from error
        finally:
            self._num_open -= 1
            job.cancel()
            if watcher is not None:
                watcher.cancel()

    def _put(self, job: Job) -> None:
        try:
            self.queue.put(job)
        except QueueFullError as error:
            wait = math.ceil(len(self.queue) * self.metrics.seconds_per_image)
            headers = {"Retry-After": str(min(max(wait, 1), 60))}
            raise busy("too many requests are waiting", headers) from error
        except QueueClosedError as error:
            raise ApiError(503, str(error), code="unavailable") from error


def _seen_px(config: UnifiedModelConfig) -> int | None:
    """Returns the side to which a model stretches all images; None if it does not."""
    return config.image_encoder.image_px if config.question_images.mode == "stretch" else None


async def _end_events(left: asyncio.Event, arrived: "asyncio.Queue[Event | None]") -> None:
    await left.wait()
    arrived.put_nowait(None)


def _as_error(event: Failed) -> ApiError:
    match event.kind:
        case "request":
            return invalid(event.message)
        case "work":
            return ApiError(500, event.message, code="work_failed")
        case "engine":
            return ApiError(503, event.message, code="engine_failed")


def name_for_clients(model: str) -> str:
    """Returns the name under which a model is served: the last part of its path or id."""
    return os.path.basename(model.rstrip("/")) or model


def new_seed() -> int:
    """Returns a random seed."""
    return secrets.randbits(31)
