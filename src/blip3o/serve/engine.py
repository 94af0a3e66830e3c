"""The engine: one thread that owns a model and does all work with it."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.serve.answers import AnswerWriter
from blip3o.serve.batching import JobQueue
from blip3o.serve.config import ServeConfig
from blip3o.serve.jobs import Failed, Job, Picture, Progress, Row
from blip3o.serve.pictures import PictureMaker

_BROKEN_DEVICE: tuple[type[BaseException], ...] = (
    getattr(torch, "AcceleratorError", MemoryError),
    MemoryError,
)
"""Errors after which nothing works any more; others end only the request that made them."""
_DEAD = "the engine stopped after an internal error"


class Observer(Protocol):
    """Is told what an engine does, from its thread."""

    def batch(self, num_rows: int, seconds: float) -> None:
        """A batch of so many pictures is done."""

    def waited(self, seconds: float) -> None:
        """A job waited so long before its work began."""


class _AbandonedError(Exception):
    """Nobody waits for any row of a batch."""


class Engine(threading.Thread):
    """Takes jobs from a queue until it is closed and empty.

    Between two steps of a batch of pictures the answers get as much time as the step took, so long
    chats and pictures go on side by side.

    Args:
        pipe: the pipeline; nobody else may use it from now on.
        queue: where jobs come from.
        config: sizes of batches.
        observer: is told what is done.
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
        self._answers: list[AnswerWriter] = []
        self._batch: Sequence[Row] = ()
        self._is_ready = threading.Event()

    @property
    def is_ready(self) -> bool:
        """Whether it is working or waiting for work."""
        return self._is_ready.is_set() and self.is_alive()

    def wait_until_ready(self) -> None:
        """Returns when the engine works, or has failed."""
        while self.is_alive() and not self._is_ready.wait(0.05):
            pass

    def run(self) -> None:
        """Works; a failure of the engine itself fails all that waits, at once."""
        try:
            if self._num_threads is not None:
                torch.set_num_threads(self._num_threads)
                torch.get_num_threads()  # a thread that never asked takes the latest one's number
            self._maker = PictureMaker(
                self._pipe,
                self._config.max_batch,
                is_padded=not self._config.unpadded_batches,
                preview_steps=self._config.preview_decoder_steps,
            )
            self._is_ready.set()
            self._work()
        except BaseException as error:  # noqa: BLE001  (also SystemExit: nobody may wait in vain)
            self._is_ready.clear()
            say(f"blip3o: {_DEAD}: {type(error).__name__}: {error}")
            self._queue.fail(_DEAD)
            for held in (*self._batch, *self._answers):
                held.job.deliver(Failed(_DEAD, "engine"))

    def _work(self) -> None:
        while True:
            if not self._answers and not self._queue.wait():
                return
            self._batch = self._queue.take_rows()
            if self._batch:
                self._make(self._batch)
            self._batch = ()
            self._write_answers(0.0)

    def _make(self, rows: Sequence[Row]) -> None:
        now = time.monotonic()
        for row in rows:
            if row.index == 0:
                self._observer.waited(now - row.job.arrived)
        try:
            images = self._maker.make(rows, self._between_steps(rows))
        except _AbandonedError:
            pass
        except _BROKEN_DEVICE:
            raise
        except Exception as error:  # noqa: BLE001  (whatever a model raises)
            self._apart(rows, error)
        else:
            for row, image in zip(rows, images, strict=True):
                row.job.deliver(Picture(row.index, image))
            self._observer.batch(len(rows), time.monotonic() - now)

    def _apart(self, rows: Sequence[Row], error: Exception) -> None:
        """Does a failed batch again job by job: one bad request does not take others with it."""
        jobs = {id(row.job): row.job for row in rows}
        if len(jobs) > 1:
            for key in jobs:
                self._make([row for row in rows if id(row.job) == key])
            return
        (job,) = jobs.values()
        job.cancel()  # its other rows need not be tried
        job.deliver(_failure(error))

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
            self._write_answers(time.monotonic() - last)
            last = time.monotonic()

        return on_step

    def _write_answers(self, seconds: float) -> None:
        """Writes pieces of all answers in turn, for so long, at least one of each."""
        end = time.monotonic() + seconds
        while True:
            while len(self._answers) < self._config.max_chats:
                job = self._queue.take_chat()
                if job is None:
                    break
                self._begin(job)
            self._answers = [answer for answer in self._answers if self._advance(answer)]
            if not self._answers or time.monotonic() >= end:
                return

    def _begin(self, job: Job) -> None:
        self._observer.waited(time.monotonic() - job.arrived)
        try:
            self._answers.append(AnswerWriter(self._pipe, job))
        except BaseException as error:
            if not isinstance(error, Exception) or isinstance(error, _BROKEN_DEVICE):
                job.deliver(Failed(_DEAD, "engine"))  # it is in no list yet
                raise
            job.deliver(_failure(error))

    def _advance(self, answer: AnswerWriter) -> bool:
        if answer.job.is_cancelled:
            return False
        try:
            with torch.no_grad():
                return answer.advance()
        except _BROKEN_DEVICE:
            raise
        except Exception as error:  # noqa: BLE001  (whatever a model raises)
            answer.job.deliver(_failure(error))
            return False


def _failure(error: Exception) -> Failed:
    if isinstance(error, UsageError):
        return Failed(str(error), "request")
    say(f"blip3o: a request failed: {type(error).__name__}: {error}")
    return Failed("the work on this request failed; the server's log says why", "work")
