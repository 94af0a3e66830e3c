"""Handles requests to stop: the first signal saves a checkpoint, the second ends immediately."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

_Handler = Callable[[int, FrameType | None], object] | int | None
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """A context in which signals set `requested` instead of killing the process.

    It works in the main thread only; other threads leave the signals alone. Forked processes
    inherit the handler but never stop the run.
    """

    def __init__(self) -> None:
        self.requested = False
        self._process = os.getpid()
        self._old: dict[int, _Handler] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self._process:
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return  # Ctrl-C reaches workers too, but only the run decides
        if self.requested:
            os._exit(128 + number)
        self.requested = True
        # Bypass Python's buffer: the signal may have interrupted another write to stderr.
        with contextlib.suppress(OSError):  # Ctrl-C also ended the `tee` that reads our stderr
            os.write(2, b"stopping after this step; repeat the signal to stop immediately\n")


@contextmanager
def children_outlive_sigterm() -> Iterator[None]:
    """A context in which new child processes ignore SIGTERM.

    A scheduler sends the signal to every process of a job, and PyTorch's loader raises an error in
    the middle of a step when a worker dies. Workers end when their loader is closed or their parent
    process is gone.
    """
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
