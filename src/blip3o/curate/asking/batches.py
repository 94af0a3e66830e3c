"""Batches of chat requests: collected from all workers, noted on the disk, and never sent twice.

In the journal, the sender of a request in a batch is the batch itself. It lives as long as any
process polls it; if that one is killed, the next process that wants an answer goes on with it, as
far as its notes tell. So a request is neither lost nor paid twice wherever the process was killed.
"""

import itertools
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack

from blip3o.core.errors import UsageError
from blip3o.core.lock import HeldError
from blip3o.core.log import say
from blip3o.curate.asking.journal import Claim, Journal
from blip3o.curate.asking.messages import Service
from blip3o.curate.asking.notes import Notes, Row
from blip3o.curate.asking.orders import Order, failing
from blip3o.remote.batches import (
    LARGEST_FILE,
    Batch,
    BatchClient,
    BatchSettings,
    UnknownBatchError,
)
from blip3o.remote.chat import Answer, ChatRequest
from blip3o.remote.cost import Budget
from blip3o.remote.http import TransientError

_MARK = "batch-"
"""Start of the name of a batch; the names of processes start with their host."""
_LOST = (
    "the answer to a request was lost, because the process that had sent it was killed; the server "
    "may have charged for it: run again with --lost ask to ask, and perhaps pay, once more, or "
    "with --lost drop to go on without it"
)


class Batches:
    """Claims requests for one server, and answers them by batches.

    Args:
        service: the server.
        journal: the journal.
        budget: counts and limits requests and money.
        working: a context that marks the broker as busy.
    """

    def __init__(
        self,
        service: Service,
        journal: Journal,
        budget: Budget,
        working: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._server = service.server
        self._settings = service.batches or BatchSettings()
        self._client = BatchClient(service.server)
        self._journal = journal
        self._budget = budget
        self._working = working
        self._notes = Notes(journal.folder / "batches")
        self._pool = ThreadPoolExecutor(service.server.max_in_flight)
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._collector = threading.Thread(target=self._collect, daemon=True)
        self._mutex = threading.Lock()

    def take(self, order: Order) -> None:
        """Answers an order from the journal, or puts it into one of the next batches."""
        with failing([order]):
            entry = self._journal.entry(order.asked.key)
            if entry is not None:
                order.answer(entry)
                return
            with self._mutex:
                if not self._collector.is_alive():
                    self._collector.start()
            self._orders.put(order)

    def claim(self, order: Order, sender: str = "") -> Claim:
        """Takes the request of an order to send it.

        Args:
            order: the order.
            sender: name of the batch that it shall be in; empty for none.

        Returns:
            "mine" or "in flight"; after anything else the worker has its answer.

        Raises:
            UsageError: if its answer was lost, or its batch cannot be asked for.
            TransientError: if its batch may be asked for later.
        """
        key = order.asked.key
        claim = self._journal.claim(key, sender=sender)
        if claim == "lost" and self._take_over(order):
            return self.claim(order, sender)
        if claim == "lost" and order.lost == "ask":
            claim = self._journal.claim(key, sender=sender, again=True)
        if claim == "lost" and order.lost == "stop":
            raise UsageError(_LOST)
        if claim == "lost":
            lost = Answer(outcome="refusal", text="the answer was lost")
            self._journal.keep(order.asked.answered(lost))
        if claim in ("lost", "answered"):
            entry = self._journal.entry(key)
            assert entry is not None
            order.answer(entry)
        return claim

    # -- new batches --

    def _collect(self) -> None:
        while True:
            orders = [self._orders.get()]
            lines = [self._line(orders[0])]
            num_bytes = len(lines[0])
            while len(orders) < self._settings.size and num_bytes < LARGEST_FILE:
                try:
                    orders.append(self._orders.get(timeout=self._settings.wait_s))
                except queue.Empty:
                    break
                lines.append(self._line(orders[-1]))
                num_bytes += len(lines[-1])
            with failing(orders):
                self._send(orders, lines)

    def _line(self, order: Order) -> bytes:
        """Returns the line of an order in an input file; empty if there can be none."""
        assert isinstance(order.request, ChatRequest)
        with failing([order]):
            return self._client.line(order.asked.key, order.request)
        return b""

    def _send(self, orders: Sequence[Order], lines: Sequence[bytes]) -> None:
        """Claims requests, and starts a batch of those that were not sent before."""
        name = f"{_MARK}{uuid.uuid4().hex}"
        rows: dict[str, Row] = {}
        waiting: dict[str, list[Order]] = {}
        sent: list[bytes] = []
        elsewhere: list[Order] = []
        with self._working(), ExitStack() as life:
            life.enter_context(self._journal.living(name))
            for order, line in zip(orders, lines, strict=True):
                key = order.asked.key
                if key in rows:
                    waiting[key].append(order)
                elif line and order.is_wanted:
                    with failing([order]):
                        claim = self.claim(order, name)
                        if claim == "in flight":
                            elsewhere.append(order)
                        elif claim == "mine":
                            rows[key] = Row(asked=order.asked, paid=self._pay(order))
                            waiting[key] = [order]
                            sent.append(line)
            self._retake(elsewhere, self._settings.poll_s)
            if rows:
                self._notes.write_rows(name, rows)
                life.enter_context(self._working())
                self._pool.submit(self._start, life.pop_all(), name, rows, sent, waiting)

    def _pay(self, order: Order) -> float:
        """Pays a claimed request in advance; a request without money is released."""
        paid = self._budget.reserve(order.request, order.asked.stage)
        if paid is None:
            self._journal.release(order.asked.key)
            raise self._budget.reached(order.request)
        return paid

    def _start(
        self,
        life: ExitStack,
        name: str,
        rows: Mapping[str, Row],
        lines: Sequence[bytes],
        waiting: Mapping[str, Sequence[Order]],
    ) -> None:
        """Sends a batch and answers its orders."""
        with life, failing(itertools.chain.from_iterable(waiting.values())):
            file = ""
            try:
                file = self._client.upload(lines)
                self._notes.write(name, file)
                batch = self._client.start(file, may_exist=False)
            except (TransientError, UsageError) as error:
                may_exist = isinstance(error, TransientError | UnknownBatchError)
                if not (file and may_exist):
                    self._release(name, rows)
                raise
            self._notes.write(name, file, batch.id)
            say(f"batch {batch.id}: {len(rows)} requests")
            self._finish(name, batch, rows, waiting)

    def _release(self, name: str, rows: Mapping[str, Row]) -> None:
        """Takes back a batch that the server does not have."""
        for key, row in rows.items():
            if self._journal.sender(key) == name:  # otherwise a killed process has done it
                self._journal.release(key)
                self._budget.release(row.paid, row.asked.stage)
        self._notes.remove(name)

    # -- batches of killed processes --

    def _take_over(self, order: Order) -> bool:
        """Goes on with the batch that a request is in; returns False if it is in none.

        Raises:
            UsageError: if the server does not know the batch.
            TransientError: if it does not answer.
        """
        name = self._journal.sender(order.asked.key)
        if name is None:  # it was answered in this moment
            return True
        if not name.startswith(_MARK):
            return False
        with ExitStack() as life:
            try:
                life.enter_context(self._journal.living(name, "polls the batch"))
            except HeldError:
                return True
            if self._journal.sender(order.asked.key) != name:
                return True
            try:
                file, id, rows = self._notes.read(name)
                if not file:
                    self._release(name, rows)
                    if not rows:  # killed while it claimed them
                        self._journal.release(order.asked.key)
                    return True
                batch = self._client.look(id) if id else self._client.start(file, may_exist=True)
            except UsageError as error:
                if order.lost == "stop":
                    raise UsageError(
                        f"{error}; or run again with --lost ask to pay for these requests once "
                        "more, or with --lost drop to go on without them"
                    ) from error
                return False
            self._notes.write(name, file, batch.id)
            say(f"batch {batch.id} of a killed process: {len(rows)} requests")
            life.enter_context(self._working())
            self._pool.submit(self._resume, life.pop_all(), name, batch, rows)
        return True

    def _resume(self, life: ExitStack, name: str, batch: Batch, rows: Mapping[str, Row]) -> None:
        with life, failing(()):
            self._finish(name, batch, rows, {})

    # -- answers --

    def _finish(
        self,
        name: str,
        batch: Batch,
        rows: Mapping[str, Row],
        waiting: Mapping[str, Sequence[Order]],
    ) -> None:
        """Waits until a batch is over, keeps its answers and settles their prices.

        Raises:
            TransientError, UsageError: if the server does not tell. The notes stay, so the next
                process that wants an answer goes on.
        """
        while not batch.is_over:
            time.sleep(self._settings.poll_s)
            batch = self._client.look(batch.id)
        results = self._client.results(batch, rows.keys())
        for key, result in results.items():
            self._settle(name, rows[key], result)
        num_answered = sum(isinstance(one, Answer) for one in results.values())
        say(f"batch {batch.id} is {batch.status}: {num_answered} of {len(rows)} answers")
        self._notes.remove(name)
        again: list[Order] = []
        for key, result in results.items():
            for order in waiting.get(key, ()):
                if isinstance(result, Answer):
                    order.answer(order.asked.answered(result))
                elif isinstance(result, UsageError):
                    order.fail(result)
                elif order.num_failed < self._server.retries:
                    order.num_failed += 1
                    again.append(order)
                else:
                    reason = f"{result} ({order.num_failed + 1} batches)"
                    order.fail(TransientError(reason))
        if again:
            pause_s = self._settings.poll_s * 2 ** (max(one.num_failed for one in again) - 1)
            self._retake(again, min(pause_s, self._server.longest_pause_s))

    def _settle(self, name: str, row: Row, result: Answer | Exception) -> None:
        """Keeps an answer or releases its request, and books its price."""
        if self._journal.sender(row.asked.key) != name:  # done before this process took over
            return
        if isinstance(result, Answer):
            self._journal.keep(row.asked.answered(result))
        else:
            self._journal.release(row.asked.key)
        # A process that is killed here leaves the advance payment, never too small a sum.
        if isinstance(result, Answer):
            self._budget.settle(row.paid, result, row.asked.stage)
        elif not (isinstance(result, TransientError) and result.is_charged):
            self._budget.settle(row.paid, None, row.asked.stage)

    def _retake(self, orders: Sequence[Order], pause_s: float) -> None:
        """Takes orders again after a pause."""
        if orders:
            timer = threading.Timer(pause_s, lambda: [self.take(order) for order in orders])
            timer.daemon = True
            timer.start()
