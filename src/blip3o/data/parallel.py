"""Applies a function to many items in several processes."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from blip3o.core.log import progress

A = TypeVar("A")
B = TypeVar("B")


def in_processes(
    function: Callable[[A], B], items: Sequence[A], jobs: int, what: str
) -> Iterator[B]:
    """Yields the result of a function for each item, in order, and displays the progress.

    With one job or item, everything runs in this process.

    Args:
        function: for several jobs it must be picklable, and so must the items and results. Each
            process gets it once.
        items: its arguments.
        jobs: maximum number of processes.
        what: short label for the display.
    """
    if jobs <= 1 or len(items) <= 1:
        yield from progress(map(function, items), total=len(items), what=what)
        return
    # Forked processes would inherit torch's threads in an unknown state.
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(jobs, len(items)), _start, (function,)) as pool:
        yield from progress(pool.imap(_call, items), total=len(items), what=what)


def _start(function: Callable[[Any], Any]) -> None:
    """Begins a worker. The first process handles Ctrl-C; the workers ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    global _function
    _function = function


def _call(item: object) -> Any:  # noqa: ANN401 - the function's own type
    return _function(item)


_function: Callable[[Any], Any]
"""The function of a worker."""
