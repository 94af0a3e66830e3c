"""Threads for the slow work of requests, and a budget of the pixels that requests hold."""

import asyncio
import contextvars
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from PIL import Image

from blip3o.serve.http.errors import ApiError, busy

T = TypeVar("T")

CLIENT_LEFT: contextvars.ContextVar[asyncio.Event | None] = contextvars.ContextVar(
    "client_left", default=None
)
"""Event that is set when the client of the current request disconnects; None if unwatched."""


class PixelBudget:
    """Counts the pixels of all input images of requests, from before they are decoded.

    All requests together may hold `max_pixels`. A single request may exceed this limit while no
    other request holds an image.
    """

    def __init__(self, max_pixels: float) -> None:
        self._max_pixels = max_pixels
        self._held: Counter[int] = Counter()
        self._lock = threading.Lock()

    @property
    def num_pixels(self) -> int:
        """Number of pixels held now."""
        with self._lock:
            return self._held.total()

    def take(self, pixels: int, owner: int) -> None:
        """Adds pixels that the request with the number `owner` is going to hold.

        Raises:
            ApiError: 429 if there are too many.
        """
        with self._lock:
            total = self._held.total()
            if total > self._held[owner] and total + pixels > self._max_pixels:
                raise busy("too many pixels of images are being held")
            self._held[owner] += pixels

    def release(self, pixels: int, owner: int) -> None:
        """Subtracts pixels that a request no longer holds."""
        with self._lock:
            self._held[owner] -= pixels
            if not self._held[owner]:
                del self._held[owner]

    def hold(self, image: Image.Image, owner: int) -> None:
        """Counts the pixels of an image until it is garbage-collected."""
        pixels = image.width * image.height
        with self._lock:
            self._held[owner] += pixels
        weakref.finalize(image, self.release, pixels, owner)


class Workers:
    """Threads for one kind of work, separate from all other threads of the server.

    Args:
        name: the kind of work, for thread names and messages.
        num_threads: number of threads.
        max_waiting: number of tasks that may wait for a thread.
        timeout_s: longest time that a request waits for a task.
    """

    def __init__(self, name: str, num_threads: int, max_waiting: int, timeout_s: float) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._max_open = num_threads + max_waiting
        self._timeout_s = timeout_s
        self._num_open = 0
        self._name = name

    async def run(self, work: Callable[[], T]) -> T:
        """Returns the result of a task that runs in a thread.

        A task is dropped if its client disconnects or its time runs out before it starts.

        Raises:
            ApiError: 429 if too many tasks wait, 499 if the client disconnected, 504 after the time
                limit. Errors of the task are raised as well.
        """
        if self._num_open >= self._max_open:
            raise busy(f"too many requests wait for {self._name}")
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        self._num_open += 1
        future.add_done_callback(self._ended)
        left = CLIENT_LEFT.get()
        watch = None if left is None else asyncio.ensure_future(left.wait())
        try:
            await asyncio.wait(
                {future} if watch is None else {future, watch},
                timeout=self._timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if future.done():
                return future.result()
            if left is not None and left.is_set():
                raise ApiError(499, "the client has disconnected", code="client_left")
            seconds = f"{self._timeout_s:g} seconds"
            raise ApiError(504, f"{self._name} took more than {seconds}", code="timeout")
        finally:
            future.cancel()
            if watch is not None:
                watch.cancel()

    def _ended(self, future: "asyncio.Future[T]") -> None:
        self._num_open -= 1
        if not future.cancelled():
            future.exception()  # marks it as retrieved, even if the request no longer waits for it
