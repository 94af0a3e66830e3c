"""A shelf for what clients fetch or name later: images at URLs, and items of responses."""

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")

_MOST_BYTES = 64_000_000


class Shelf(Generic[T]):
    """The latest things of a kind, in memory; callers give them names that cannot be guessed.

    Args:
        max_bytes: the oldest things make room for new ones beyond this.
    """

    def __init__(self, max_bytes: int = _MOST_BYTES) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def put(self, name: str, thing: T, size: int) -> None:
        """Keeps a thing.

        Args:
            name: new.
            thing: the thing.
            size: its bytes.
        """
        with self._lock:
            self._held[name] = (thing, size)
            self._size += size
            while self._size > self._max_bytes and len(self._held) > 1:
                self._size -= self._held.popitem(last=False)[1][1]

    def get(self, name: str) -> T | None:
        """Returns the thing of a name, or None if it is not there any more."""
        with self._lock:
            return self._held.get(name, (None, 0))[0]
