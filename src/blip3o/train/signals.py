"""Turns a request to stop into a checkpoint: the first signal asks, the second one ends at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """A context in which signals set `requested` instead of killing the process.

    Works in the main thread only; elsewhere signals keep their meaning. Processes forked inside
    keep the handler but never act for the run.
    """

    def __init__(self) -> None:
        self.requested = False
        self._process = os.getpid()
        self._old: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self._process:
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return  # Ctrl-C reaches workers too; only the run decides
        if self.requested:
            os._exit(128 + number)
        self.requested = True
        # Past Python's buffers: the signal may have come in the middle of another line to stderr.
        with contextlib.suppress(OSError):  # Ctrl-C also ended the `tee` that reads our stderr
            os.write(2, b"stopping after this step; once more to stop at once\n")


@contextmanager
def children_outlive_sigterm() -> Iterator[None]:
    """A context in which processes are started that SIGTERM does not end.

    A scheduler sends the signal to every process of a job, and PyTorch's loader raises in the
    middle of whatever runs when a worker dies. Workers end when their loader is closed, or when
    they miss the process that started them.
    """
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
