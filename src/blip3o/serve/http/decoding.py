"""Threads that decode the images of requests, and a budget of the pixels they may hold."""

import asyncio
import contextvars
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from PIL import Image

from blip3o.serve.http.errors import ApiError

T = TypeVar("T")

CLIENT_LEFT: contextvars.ContextVar[asyncio.Event | None] = contextvars.ContextVar(
    "client_left", default=None
)
"""Is set when the client of the current request hangs up; None if that is not watched."""


class PixelBudget:
    """Counts the pixels of all images of requests; they are counted before they are decoded.

    A single request may be over the limit while no other request holds an image.

    Args:
        max_pixels: of all images of all requests.
    """

    def __init__(self, max_pixels: float) -> None:
        self._max_pixels = max_pixels
        self._held: Counter[int] = Counter()
        self._lock = threading.Lock()

    @property
    def num_pixels(self) -> int:
        """Pixels that are held now."""
        with self._lock:
            return self._held.total()

    def take(self, pixels: int, owner: int) -> None:
        """Counts pixels that a request is going to hold.

        Args:
            pixels: how many.
            owner: number of the request.

        Raises:
            ApiError: 429 if there are too many.
        """
        with self._lock:
            total = self._held.total()
            if total > self._held[owner] and total + pixels > self._max_pixels:
                raise busy("too many pixels of images are being held")
            self._held[owner] += pixels

    def give_back(self, pixels: int, owner: int) -> None:
        """Counts pixels that are not held any more."""
        with self._lock:
            self._held[owner] -= pixels
            if not self._held[owner]:
                del self._held[owner]

    def hold(self, image: Image.Image, owner: int) -> None:
        """Counts the pixels of an image for as long as anything refers to it."""
        pixels = image.width * image.height
        with self._lock:
            self._held[owner] += pixels
        weakref.finalize(image, self.give_back, pixels, owner)


class Workers:
    """Threads for one kind of work of requests, apart from all other threads of the server.

    Args:
        name: of the threads.
        num_threads: how many.
        max_waiting: pieces of work that may wait for a thread.
        timeout_s: longest time that a request waits for a piece of work.
    """

    def __init__(self, name: str, num_threads: int, max_waiting: int, timeout_s: float) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._max_open = num_threads + max_waiting
        self._timeout_s = timeout_s
        self._num_open = 0
        self._name = name

    async def run(self, work: Callable[[], T]) -> T:
        """Returns the result of work done by a thread.

        Work that has not begun when its client hangs up or its time is over is dropped.

        Args:
            work: called in a thread.

        Raises:
            ApiError: 429 if too much waits, 499 if the client left, 504 after the time limit; and
                whatever the work raises.
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
                raise ApiError(499, "the client left", code="client_left")
            seconds = f"{self._timeout_s:g} seconds"
            raise ApiError(504, f"{self._name} took more than {seconds}", code="timeout")
        finally:
            future.cancel()
            if watch is not None:
                watch.cancel()

    def _ended(self, future: "asyncio.Future[T]") -> None:
        self._num_open -= 1
        if not future.cancelled():
            future.exception()  # it may be that no request waits for it any more


def busy(reason: str) -> ApiError:
    """Returns the error for a request that comes when the server holds too much already."""
    return ApiError(
        429, f"{reason}; try again later", code="queue_full", headers={"Retry-After": "1"}
    )
