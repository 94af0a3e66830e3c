"""Requests of workers in the broker: each is answered once, whoever finds the answer."""

import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

from blip3o.core.errors import PreemptedError, UsageError
from blip3o.curate.asking.journal import Asked, Entry
from blip3o.curate.asking.messages import Told, Wanted, completed, described
from blip3o.curate.models import Lost, Reply, Request
from blip3o.remote.cache import request_key
from blip3o.remote.http import TransientError


class Worker:
    """The connection of a worker; it may be gone when its answers come.

    Args:
        connection: the connection.

    Attributes:
        is_there: whether it has not left.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._mutex = threading.Lock()
        self.is_there = True

    def wanted(self) -> Iterator[Wanted]:
        """Yields the requests of the worker until it leaves."""
        with suppress(EOFError, OSError):
            while True:
                yield self._connection.recv()
        self.is_there = False

    def tell(self, told: Told) -> None:
        """Sends an answer, if the worker is still there."""
        with self._mutex, suppress(OSError):
            self._connection.send(told)


class Order:
    """A request of a worker, with everything that an answer needs.

    Args:
        wanted: the request as it came.
        worker: the worker.

    Attributes:
        request: the request as it is sent.
        asked: its name in the journal.
        lost: treatment of the request if its answer was lost.
        num_failed: number of batches that it failed in.
    """

    def __init__(self, wanted: Wanted, worker: Worker) -> None:
        name = wanted.service.server.full_name
        self.request: Request = completed(wanted.service, wanted.request)
        content = described(wanted.service, self.request)
        self.asked = Asked(
            key=request_key(name, content), model=name, stage=wanted.stage, request=content
        )
        self.lost: Lost = wanted.lost
        self.num_failed = 0
        self._number = wanted.number
        self._worker = worker

    @property
    def is_wanted(self) -> bool:
        """Whether the worker still waits; otherwise the next one asks again, if it needs to."""
        return self._worker.is_there

    def answer(self, entry: Entry) -> None:
        """Gives the worker its answer."""
        reply = Reply(
            outcome=entry.outcome,
            text=entry.text,
            image=entry.image,
            model=entry.model,
            request=entry.key,
        )
        self._worker.tell(Told(number=self._number, reply=reply))

    def fail(self, error: Exception) -> None:
        """Tells the worker why there is no answer."""
        fault = str(error) if isinstance(error, UsageError | PreemptedError) else repr(error)
        if isinstance(error, TransientError):
            fault = f"{self.asked.model} did not answer: {error}; the same command asks again"
        is_final = not isinstance(error, TransientError | PreemptedError)
        self._worker.tell(Told(number=self._number, fault=fault, is_final=is_final))


@contextmanager
def failing(orders: Iterable[Order]) -> Iterator[None]:
    """Tells the workers of an error in the block, so that they do not wait for ever.

    Args:
        orders: the orders that the block should answer.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001  (the workers raise it)
        for order in orders:
            order.fail(error)
        if not isinstance(error, TransientError | PreemptedError | UsageError):
            traceback.print_exc()
