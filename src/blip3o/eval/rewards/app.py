"""The application of the reward server: its routes, and the service behind them."""

import asyncio
import dataclasses
import itertools
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from blip3o import __version__
from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.eval.rewards import REWARDS, Reward
from blip3o.eval.rewards.config import RewardServerConfig
from blip3o.eval.rewards.dispatcher import Dispatcher
from blip3o.eval.rewards.errors import ApiError, busy, invalid, unavailable
from blip3o.eval.rewards.metrics import RewardMetrics
from blip3o.eval.rewards.requests import RequestReader
from blip3o.eval.rewards.tasks import QueueFullError, Task, TaskQueue, UnavailableError

_LOOK_S = 1.0
"""Seconds between two checks whether the client of a request still waits."""
_LONGEST_WAIT_S = 30


class RewardService:
    """Shared state of all routes.

    Args:
        benchmark: an entry of `REWARDS`.
        overrides: `path=value` changes of the benchmark's settings.
        config: the limits.
        failed: called once, from another thread, if no scorer can be started.

    Raises:
        UsageError: for an unknown benchmark or setting.
    """

    def __init__(
        self,
        benchmark: str,
        overrides: Sequence[str],
        config: RewardServerConfig,
        failed: Callable[[], object] = lambda: None,
    ) -> None:
        self.config = config
        self.benchmark = benchmark
        self.source = REWARDS.get(benchmark)(overrides)
        self.metrics = RewardMetrics()
        self.reader = RequestReader(self.source.metadata, config)
        self.queue = TaskQueue(config.max_queue, config.max_queue_bytes, config.max_wait_ms / 1000)
        self.dispatcher = Dispatcher(
            REWARDS.place(benchmark), overrides, self.queue, config, self.metrics, failed
        )
        self._numbers = itertools.count()
        self.metrics.watch("queue_images", "Waiting images", lambda: len(self.queue))
        self.metrics.watch("ready", "1 if the scorer is ready", lambda: float(self.is_ready))

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted and the scorer is loaded."""
        return self.dispatcher.state == "ready" and self.queue.closed is None

    def health(self) -> dict[str, object]:
        """Returns the state of the server."""
        state = self.dispatcher.state
        is_draining = state in ("loading", "ready", "restarting") and self.queue.closed is not None
        return {
            "status": "stopping" if is_draining else state,
            "reason": self.queue.closed,
            "queued_images": len(self.queue),
            "scorer_pid": self.dispatcher.pid,
        }

    def info(self) -> dict[str, object]:
        """Returns the judge and everything that shapes its rewards."""
        info = self.dispatcher.info
        return {
            "benchmark": self.benchmark,
            "judge": None if info is None else info.judge,
            "batch_size": None if info is None else info.batch_size,
            "settings": dict(self.source.settings),
            "version": __version__,
            "limits": {
                field.name: getattr(self.config, field.name)
                for field in dataclasses.fields(self.config)
                if field.name.startswith("max_")
            },
            "metadata": self.source.metadata.model_json_schema(),
        }

    async def rewards(self, request: Request) -> list[Reward]:
        """Returns the rewards of the images of a request, in their order.

        Raises:
            ApiError: if the request is invalid, or cannot be answered now.
            ClientDisconnect: if the client leaves.
        """
        files, items = await self.reader.read(request)
        tasks = [
            self._task(number, file, metadata)
            for number, (file, metadata) in enumerate(zip(files, items, strict=True))
        ]
        del files  # the tasks hold them now
        try:
            self.queue.put(tasks)
        except QueueFullError as error:
            seconds = math.ceil(len(self.queue) * self.metrics.seconds_per_image)
            wait_s = min(max(seconds, 1), _LONGEST_WAIT_S)
            raise busy(f"{len(self.queue)} images are waiting", wait_s) from error
        except UnavailableError as error:
            raise unavailable(str(error)) from error
        return await self._answers(request, tasks)

    def _task(self, number: int, file: bytes, metadata: BaseModel) -> Task:
        try:
            item = self.source.item_of(metadata)
        except UsageError as error:
            raise invalid(f"items.{number}: {error}", f"items.{number}") from error
        unique = next(self._numbers)
        return Task(dataclasses.replace(item, id=str(unique), number=unique), file)

    async def _answers(self, request: Request, tasks: Sequence[Task]) -> list[Reward]:
        futures = [asyncio.wrap_future(task.reward) for task in tasks]
        end = time.monotonic() + self.config.timeout_s
        try:
            left = set(futures)
            while left:
                _, left = await asyncio.wait(left, timeout=_LOOK_S)
                if left and await request.is_disconnected():
                    raise ClientDisconnect
                if left and time.monotonic() > end:
                    seconds = f"{self.config.timeout_s:g} seconds"
                    raise unavailable(f"the request took more than {seconds}; send it again")
            return [future.result() for future in futures]
        except UnavailableError as error:
            raise unavailable(str(error)) from error
        finally:
            for future in futures:
                if future.done() and not future.cancelled():
                    future.exception()  # marks it as retrieved
                future.cancel()


def create_app(
    benchmark: str,
    overrides: Sequence[str] = (),
    config: RewardServerConfig | None = None,
    failed: Callable[[], object] = lambda: None,
) -> FastAPI:
    """Returns the application of a reward server; its `state.service` is the `RewardService`.

    The scorer is loaded when the application starts, and ends when it stops.

    Args:
        benchmark: an entry of `REWARDS`.
        overrides: `path=value` changes of the benchmark's settings.
        config: the limits; None for the defaults.
        failed: called once, from another thread, if no scorer can be started.

    Raises:
        UsageError: for an unknown benchmark or setting.
    """
    service = RewardService(benchmark, overrides, config or RewardServerConfig(), failed)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        service.dispatcher.start()
        try:
            yield
        finally:
            await asyncio.to_thread(service.dispatcher.stop)

    # FastAPI's own /docs loads scripts from other sites.
    app = FastAPI(
        title="blip3o rewards",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    for kind in (ApiError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer_error)

    @app.post("/v1/rewards")
    async def rewards(request: Request) -> Response:
        start = time.monotonic()
        status = 500
        try:
            found = await service.rewards(request)
            response = JSONResponse(_answer(service, found))
            status = response.status_code
            return response
        except ApiError as error:
            status = error.status
            raise
        except ClientDisconnect:
            status = 499
            return Response(status_code=status)
        finally:
            service.metrics.answered(status, time.monotonic() - start)

    @app.get("/v1/info")
    async def info() -> Response:
        return JSONResponse(service.info())

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse(service.health(), 200 if service.is_ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    return app


def _answer(service: RewardService, rewards: Sequence[Reward]) -> Mapping[str, Any]:
    info = service.dispatcher.info
    return {
        "judge": None if info is None else info.judge,
        "rewards": [
            {"score": one.score, "outcome": one.outcome, "data": one.data} for one in rewards
        ],
    }


async def _answer_error(request: Request, error: Exception) -> Response:
    match error:
        case ApiError():
            answer = error
        case HTTPException(status_code=404):
            paths = "/v1/rewards, /v1/info, /health and /metrics"
            answer = ApiError(404, f"no such path; this server has {paths}", code="not_found")
        case HTTPException():
            answer = ApiError(error.status_code, error.detail, headers=error.headers)
        case _:
            say(f"blip3o: a request failed: {type(error).__name__}: {error}")
            answer = ApiError(500, "an internal error; the server's log says more")
    return answer.response()
