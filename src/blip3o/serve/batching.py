"""The queue: first come, first served; compatible images share a batch."""

import math
import threading
import time
from collections import deque

from blip3o.serve.jobs import ChatRequest, Failed, ImageRequest, Job, Row


class QueueFullError(Exception):
    """The queue has no room for another request."""


class QueueClosedError(Exception):
    """The queue accepts no more requests: the server is stopping or its engine failed."""


class JobQueue:
    """Jobs of all clients, taken by one or more engines.

    The oldest image job decides the kind of the next batch, so no kind of request waits forever.
    Within a batch the jobs take turns, so a ten-image request does not delay a one-image request.

    Args:
        max_jobs: largest number of waiting jobs.
        max_batch: rows of a full batch.
        max_wait_s: how long the oldest image job waits for others.
        max_pixels: largest total of pixels of the waiting jobs' input images. A job without
            images is always accepted, and so is a job with images if no other has any.
    """

    def __init__(
        self, max_jobs: int, max_batch: int, max_wait_s: float, max_pixels: float = math.inf
    ) -> None:
        self._max_jobs = max_jobs
        self._max_pixels = max_pixels
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._images: deque[Job] = deque()
        self._chats: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed: str | None = None

    def __len__(self) -> int:
        with self._changed:
            self._drop_cancelled()
            return len(self._images) + len(self._chats)

    @property
    def closed(self) -> str | None:
        """Why the queue accepts no more requests; None while it accepts them."""
        return self._closed

    def put(self, job: Job) -> None:
        """Adds a job.

        Raises:
            QueueFullError: if too many jobs, or images with too many pixels, are waiting.
            QueueClosedError: after `close` or `fail`.
        """
        with self._changed:
            if self._closed is not None:
                raise QueueClosedError(self._closed)
            self._drop_cancelled()
            waiting = [*self._images, *self._chats]
            if len(waiting) >= self._max_jobs or self._has_too_many_pixels(waiting, job):
                raise QueueFullError
            is_chat = isinstance(job.request, ChatRequest)
            (self._chats if is_chat else self._images).append(job)
            self._changed.notify_all()

    def _has_too_many_pixels(self, waiting: list[Job], job: Job) -> bool:
        if not job.num_pixels:
            return False
        pixels = sum(other.num_pixels for other in waiting)
        return pixels > 0 and pixels + job.num_pixels > self._max_pixels

    def close(self) -> None:
        """Accepts no more jobs; waiting jobs are still processed."""
        with self._changed:
            self._closed = self._closed or "the server is shutting down"
            self._changed.notify_all()

    def fail(self, reason: str) -> None:
        """Accepts no more jobs and fails the waiting ones immediately."""
        with self._changed:
            self._closed = reason
            for job in (*self._images, *self._chats):
                job.deliver(Failed(reason, "engine"))
            self._images.clear()
            self._chats.clear()
            self._changed.notify_all()

    def take_chat(self) -> Job | None:
        """Removes and returns the oldest chat, or returns None."""
        with self._changed:
            self._drop_cancelled()
            return self._chats.popleft() if self._chats else None

    def take_rows(self) -> list[Row]:
        """Removes and returns the rows of the next batch; an empty list if none is due yet."""
        with self._changed:
            self._drop_cancelled()
            if not self._images or self._due_in() > 0:
                return []
            return self._next_batch()

    def wait(self) -> bool:
        """Waits until there is work; returns False once the queue is closed and empty."""
        with self._changed:
            while True:
                self._drop_cancelled()
                if self._chats:
                    return True
                due = self._due_in() if self._images else None
                if due is not None and due <= 0:
                    return True
                if due is None and self._closed is not None:
                    return False
                self._changed.wait(due)

    def _due_in(self) -> float:
        """Returns the seconds that the next batch may still wait for more rows."""
        if self._closed is not None or len(self._matching()) >= self._max_batch:
            return 0.0
        return self._images[0].arrived + self._max_wait_s - time.monotonic()

    def _matching(self) -> list[Row]:
        """Returns rows that can share a batch with the oldest job, taking jobs in turn."""
        requests = [(job, job.request) for job in self._images]
        first = requests[0][1]
        assert isinstance(first, ImageRequest), "chats have their own queue"
        left = [
            [Row(job, request, index) for index in range(job.num_taken, request.count)]
            for job, request in requests
            if isinstance(request, ImageRequest) and request.batch_key == first.batch_key
        ]
        rows: list[Row] = []
        turn = 0
        while any(turn < len(some) for some in left) and len(rows) < self._max_batch:
            rows += [some[turn] for some in left if turn < len(some)]
            turn += 1
        return rows[: self._max_batch]

    def _next_batch(self) -> list[Row]:
        rows = self._matching()
        for row in rows:
            row.job.num_taken += 1
        finished = {id(row.job) for row in rows if row.job.num_taken >= row.request.count}
        self._images = deque(job for job in self._images if id(job) not in finished)
        return rows

    def _drop_cancelled(self) -> None:
        for jobs in (self._images, self._chats):
            if any(job.is_cancelled for job in jobs):
                kept = [job for job in jobs if not job.is_cancelled]
                jobs.clear()
                jobs.extend(kept)
