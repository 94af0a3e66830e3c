"""The queue of images: first come, first served; images of many requests share a batch."""

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from blip3o.eval.benchmark import Item
from blip3o.eval.rewards import Reward

_SUSPECT = 2
"""Deaths of the scorer with an image in work, after which the image is judged alone."""


class QueueFullError(Exception):
    """The queue has no room for the images of a request."""


class UnavailableError(Exception):
    """The server is stopping, or its scorer cannot be started; the text says which."""


@dataclasses.dataclass(eq=False)
class Task:
    """One image of a request, and the promise of its reward.

    Args:
        item: the item that it is judged by; its id is unique on the server.
        data: the file.
        reward: the promise. A promise that is cancelled before the work begins drops the image.
        arrived: time of arrival, of the monotonic clock.
        deaths: number of times that the scorer died with this image in work.
    """

    item: Item
    data: bytes = dataclasses.field(repr=False)
    reward: "Future[Reward]" = dataclasses.field(default_factory=Future)
    arrived: float = dataclasses.field(default_factory=time.monotonic)
    deaths: int = 0

    def is_wanted(self) -> bool:
        """Marks the beginning of the work; returns False if its client has left."""
        return self.reward.running() or self.reward.set_running_or_notify_cancel()


class TaskQueue:
    """Images that wait for the scorer.

    Args:
        max_images: largest number of waiting images.
        max_bytes: largest total size of their files; a request is always accepted if no image
            waits.
        max_wait_s: how long the oldest image waits for others.
    """

    def __init__(self, max_images: int, max_bytes: int, max_wait_s: float) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._max_wait_s = max_wait_s
        self._tasks: deque[Task] = deque()
        self._changed = threading.Condition()
        self._closed: str | None = None

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def closed(self) -> str | None:
        """Why the queue accepts no more images; None while it accepts them."""
        return self._closed

    def put(self, tasks: Sequence[Task]) -> None:
        """Adds all images of a request, or none.

        Raises:
            QueueFullError: if too many images are waiting.
            UnavailableError: after `close` or `fail`.
        """
        with self._changed:
            if self._closed is not None:
                raise UnavailableError(self._closed)
            if not self._has_room(tasks):
                self._tasks = deque(task for task in self._tasks if not task.reward.cancelled())
                if not self._has_room(tasks):
                    raise QueueFullError
            self._tasks.extend(tasks)
            self._changed.notify_all()

    def put_back(self, tasks: Sequence[Task]) -> None:
        """Adds images in front of all others, even to a full or closed queue."""
        with self._changed:
            self._tasks.extendleft(reversed(tasks))
            self._changed.notify_all()

    def close(self, reason: str) -> None:
        """Accepts no more images; waiting ones are still judged."""
        with self._changed:
            self._closed = self._closed or reason
            self._changed.notify_all()

    def fail(self, reason: str) -> None:
        """Accepts no more images, and fails the waiting ones."""
        with self._changed:
            self._closed = reason
            tasks = list(self._tasks)
            self._tasks.clear()
            self._changed.notify_all()
        for task in tasks:
            if task.is_wanted():
                task.reward.set_exception(UnavailableError(reason))

    def take(self, size: int, timeout_s: float) -> list[Task]:
        """Removes and returns the next batch; empty if no image arrives in time.

        Args:
            size: images of a full batch.
            timeout_s: longest wait for a first image.
        """
        end = time.monotonic() + timeout_s
        with self._changed:
            while not self._tasks:
                left = end - time.monotonic()
                if left <= 0:
                    return []
                self._changed.wait(left)
            due = self._tasks[0].arrived + self._max_wait_s
            while len(self._tasks) < size and self._closed is None:
                left = due - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            batch: list[Task] = []
            while self._tasks and len(batch) < size:
                is_suspect = self._tasks[0].deaths >= _SUSPECT
                if is_suspect and batch:
                    break
                task = self._tasks.popleft()
                if task.is_wanted():
                    batch.append(task)
                    if is_suspect:
                        break
            return batch

    def _has_room(self, tasks: Sequence[Task]) -> bool:
        if not self._tasks:
            return True
        num_bytes = sum(len(task.data) for some in (self._tasks, tasks) for task in some)
        num_images = len(self._tasks) + len(tasks)
        return num_images <= self._max_images and num_bytes <= self._max_bytes
