"""The engine: a thread that owns a model and does all of its work."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from blip3o.core.log import say
from blip3o.generate.decoding import ROWS, RowDecoder
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.serve.answers import AnswerDesk
from blip3o.serve.batching import JobQueue
from blip3o.serve.config import ServeConfig
from blip3o.serve.failures import DEVICE_ERRORS, failure
from blip3o.serve.images import ImageMaker
from blip3o.serve.jobs import Drawn, Failed, Progress, Row

_DEAD = "the engine stopped after an internal error"
_ONE_BY_ONE = (
    "blip3o: on this machine the last bits of an answer depend on its place among others, so "
    "answers are written one by one; --unpadded-batches writes them together"
)


class Observer(Protocol):
    """Receives statistics of an engine, on the engine's thread."""

    def batch(self, num_rows: int, seconds: float) -> None:
        """Records that a batch of images took some time."""

    def waited(self, seconds: float) -> None:
        """Records how long a job waited before its work began."""


class _AbandonedError(Exception):
    """All jobs of a batch were cancelled."""


class Engine(threading.Thread):
    """Does the jobs of a queue until the queue is closed and empty.

    After each step of a batch of images, the answers get as much time as the step took. So chats
    and images progress at the same time.

    Args:
        pipe: the pipeline; no other code may use it afterwards.
        queue: the queue of jobs.
        config: sizes of batches.
        observer: receives statistics.
        num_threads: CPU threads of this engine; None leaves torch's own number.
    """

    def __init__(
        self,
        pipe: Blip3oPipeline,
        queue: JobQueue,
        config: ServeConfig,
        observer: Observer,
        num_threads: int | None = None,
    ) -> None:
        super().__init__(name="blip3o-engine", daemon=True)
        self._pipe = pipe
        self._queue = queue
        self._config = config
        self._observer = observer
        self._num_threads = num_threads
        self._desk: AnswerDesk | None = None
        self._batch: Sequence[Row] = ()
        self._is_ready = threading.Event()

    @property
    def is_ready(self) -> bool:
        """Whether the engine has started and has not failed."""
        return self._is_ready.is_set() and self.is_alive()

    def wait_until_ready(self) -> None:
        """Waits until the engine is ready or has failed."""
        while self.is_alive() and not self._is_ready.wait(0.05):
            pass

    def run(self) -> None:
        """Does all jobs; if the engine itself fails, all waiting jobs fail immediately."""
        try:
            if self._num_threads is not None:
                torch.set_num_threads(self._num_threads)
                # Without this call, the thread would use the number that was set last anywhere.
                torch.get_num_threads()
            if self._config.compile:
                self._pipe.compile()
            self._maker = ImageMaker(
                self._pipe,
                self._config.max_batch,
                is_padded=not self._config.unpadded_batches,
                preview_steps=self._config.preview_decoder_steps,
            )
            self._desk = self._open_desk()
            self._is_ready.set()
            self._work(self._desk)
        except BaseException as error:  # noqa: BLE001  (also SystemExit: clients are waiting)
            self._is_ready.clear()
            say(f"blip3o: {_DEAD}: {type(error).__name__}: {error}")
            self._queue.fail(_DEAD)
            held = [row.job for row in self._batch] + (self._desk.jobs if self._desk else [])
            for job in held:
                job.deliver(Failed(_DEAD, "engine"))

    def _open_desk(self) -> AnswerDesk:
        config, together = self._config, ROWS
        if config.max_chats > 1 and not config.unpadded_batches:
            together = RowDecoder(self._pipe.model).num_equal_places()
            if together == 1:
                say(_ONE_BY_ONE)
        return AnswerDesk(
            self._pipe,
            self._queue.take_chat,
            self._observer.waited,
            max_answers=config.max_chats,
            max_tokens=config.max_chat_tokens,
            together=together,
        )

    def _work(self, desk: AnswerDesk) -> None:
        while True:
            if not desk.is_busy and not self._queue.wait():
                return
            self._batch = self._queue.take_rows()
            if self._batch:
                self._make(self._batch)
            self._batch = ()
            desk.work(0.0)

    def _make(self, rows: Sequence[Row]) -> None:
        now = time.monotonic()
        for row in rows:
            if row.index == 0:
                self._observer.waited(now - row.job.arrived)
        jobs = {id(row.job): row.job for row in rows}
        try:
            images = self._maker.make(rows, self._between_steps(rows))
        except _AbandonedError:
            return
        except DEVICE_ERRORS:
            raise
        except Exception as error:  # noqa: BLE001  (a model may raise any error)
            if len(jobs) == 1:
                (job,) = jobs.values()
                job.cancel()  # skips its other rows
                job.deliver(failure(error))
                return
        else:
            for row, image in zip(rows, images, strict=True):
                row.job.deliver(Drawn(row.index, image))
            self._observer.batch(len(rows), time.monotonic() - now)
            return
        # Retry job by job, so one bad request does not fail the others. The error is freed here,
        # and with it the memory that its frames held.
        for key in jobs:
            self._make([row for row in rows if id(row.job) == key])

    def _between_steps(self, rows: Sequence[Row]) -> Callable[[int, Tensor], None]:
        jobs = list({id(row.job): row.job for row in rows}.values())
        num_steps = rows[0].request.num_inference_steps
        last = time.monotonic()

        def on_step(step: int, features: Tensor) -> None:
            nonlocal last
            del features
            if all(job.is_cancelled for job in jobs):
                raise _AbandonedError
            for job in jobs:
                job.deliver(Progress(step, num_steps))
            if self._desk is not None:
                self._desk.work(time.monotonic() - last)
            last = time.monotonic()

        return on_step
