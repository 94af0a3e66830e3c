"""Requests to a server with all their attempts: pace, retries, pauses, and the budget.

The module knows no endpoint: a client gives the functions that write and read the messages.
"""

import collections
import dataclasses
import queue
import random
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from blip3o.core.errors import UsageError, first_line
from blip3o.core.log import say
from blip3o.remote.chat import AnswerOutcome
from blip3o.remote.cost import Budget, estimate
from blip3o.remote.http import RefusedError, Server, TransientError
from blip3o.remote.usage import HasUsage

RequestT = TypeVar("RequestT", bound=HasUsage)
AnswerT = TypeVar("AnswerT", bound=HasUsage)
EndT = TypeVar("EndT", bound=HasUsage, covariant=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
    """A request as it is sent.

    Args:
        address: address of the endpoint.
        body: body of the message.
        content_type: type of the body.
    """

    address: str
    body: bytes = dataclasses.field(repr=False)
    content_type: str = "application/json"


class End(Protocol[EndT]):
    """Makes the answer for a request that ended without one of the server."""

    def __call__(self, *, outcome: AnswerOutcome, text: str) -> EndT:
        """Returns the answer with an outcome and its reason."""
        ...


class Attempts(Generic[RequestT, AnswerT]):
    """Sends requests to a server until each is answered, refused or given up.

    Args:
        server: the server, with the settings of the attempts.
        budget: counts and limits requests and money; None for no limit.
        write: returns the message of a request; raises a UsageError if there is none.
        read: returns the answer in the body of a successful response; raises a ValueError if the
            body is broken, so that another attempt may succeed.
        end: makes the answer of a refused or unanswered request.
    """

    def __init__(
        self,
        server: Server,
        budget: Budget | None,
        *,
        write: Callable[[RequestT], Message],
        read: Callable[[RequestT, bytes], AnswerT],
        end: End[AnswerT],
    ) -> None:
        self._server = server
        self._budget = budget
        self._write, self._read, self._end = write, read, end
        self._is_announced = False

    def ask(self, request: RequestT, stop: threading.Event, account: str = "") -> AnswerT | None:
        """Returns the answer to one request after all its attempts.

        Several threads may ask at the same time; `max_in_flight` does not limit them.

        Args:
            request: the request.
            stop: ends the pauses and prevents further attempts; one that is sent is waited for.
            account: account of the budget that pays; empty for none.

        Returns:
            The answer; None if the budget has no room or `stop` is set.

        Raises:
            UsageError: if the server refuses all requests (its message is repeated), or cannot be
                reached at all.
        """
        bill = _Bill(self._budget, request, account)
        return self._ask(request, bill, stop) if bill.pay() else None

    def answers(self, requests: Sequence[RequestT]) -> Generator[tuple[int, AnswerT], None, None]:
        """Yields (position of the request, answer), each as soon as it is there, in any order.

        Each request has its own thread. A further request starts only after the caller has taken
        an answer. Before an error, all answers in flight are yielded.

        Raises:
            UsageError: as `ask`.
            PreemptedError: if a cap of the budget is reached.
        """
        self._announce(requests)
        waiting = collections.deque(range(len(requests)))
        done: queue.SimpleQueue[tuple[int, AnswerT | Exception | None]] = queue.SimpleQueue()
        stop = threading.Event()
        num_in_flight = 0
        fault: Exception | None = None

        def work(number: int, bill: _Bill) -> None:
            result: AnswerT | Exception | None
            try:
                result = self._ask(requests[number], bill, stop)
            except Exception as error:  # noqa: BLE001  (the waiting thread raises it)
                result = error
            done.put((number, result))

        max_in_flight = self._server.settings.max_in_flight
        try:
            while True:
                while waiting and fault is None and num_in_flight < max_in_flight:
                    bill = _Bill(self._budget, requests[waiting[0]])
                    if not bill.pay():
                        break
                    arguments = (waiting.popleft(), bill)
                    threading.Thread(target=work, args=arguments, daemon=True).start()
                    num_in_flight += 1
                if not num_in_flight:
                    break
                number, result = done.get()
                num_in_flight -= 1
                if isinstance(result, Exception):
                    fault = fault or result
                elif result is None:  # the budget had no room for a further attempt
                    waiting.appendleft(number)
                else:
                    yield number, result
            if fault is not None:
                raise fault
            if waiting and self._budget is not None:
                raise self._budget.reached(requests[waiting[0]])
        finally:
            stop.set()

    def _announce(self, requests: Sequence[RequestT]) -> None:
        """Prints the estimate of the first requests, if they cost money."""
        if self._is_announced or not requests or self._budget is None:
            return
        self._is_announced = True
        if self._budget.prices is not None:
            expected = estimate(requests, self._budget.prices)
            spent = self._budget.spent()
            name = self._server.settings.full_name
            say(f"first requests to {name}: {expected}; spent so far: {spent.cost:.4g}")

    def _ask(self, request: RequestT, bill: "_Bill", stop: threading.Event) -> AnswerT | None:
        """Returns the answer after all attempts; None if the budget or `stop` ends them.

        Args:
            request: the request.
            bill: its payments; the first attempt is paid.
            stop: ends the attempts.
        """
        settings, pace = self._server.settings, self._server.pace
        try:
            message = self._write(request)
        except UsageError:
            bill.release()
            raise
        for attempt in range(settings.retries + 1):
            if attempt and not bill.pay():
                return None
            if not pace.wait(stop):
                bill.release()
                return None
            try:
                return self._attempt(request, message, bill)
            except TransientError as error:
                fault = error
            if fault.pause_s is not None:
                if fault.pause_s > settings.longest_pause_s:
                    return self._end(
                        outcome="transport",
                        text=f"{fault}; the server asks for a pause of {fault.pause_s:.0f} s, more "
                        f"than longest_pause_s={settings.longest_pause_s:g}",
                    )
                pace.hold(fault.pause_s)
            if attempt == settings.retries:
                if not self._server.was_reached:
                    raise UsageError(
                        f"cannot reach {settings.url}: {fault}; check the url, and start the "
                        "server if it is your own"
                    )
                return self._end(outcome="transport", text=f"{fault} ({attempt + 1} attempts)")
            pause_s = min(settings.pause_s * 2**attempt, settings.longest_pause_s)
            if stop.wait(pause_s * random.uniform(0.5, 1.0)):  # also if the server asks for less
                return None
        raise AssertionError("the last attempt returns")

    def _attempt(self, request: RequestT, message: Message, bill: "_Bill") -> AnswerT:
        """Returns the answer of one attempt and settles its payment.

        Raises:
            TransientError: if another attempt may succeed.
            UsageError: if none can.
        """
        headers: Mapping[str, str] = {"content-type": message.content_type}
        try:
            data = self._server.post(message.address, message.body, headers)
        except RefusedError as error:
            answer = self._end(outcome="refusal", text=str(error))
        except TransientError as error:
            if not error.is_charged:
                bill.settle(None)
            raise
        except UsageError:
            bill.settle(None)
            raise
        else:
            try:
                answer = self._read(request, data)
            except ValueError as error:
                raise TransientError(first_line(error)) from error
        bill.settle(answer)
        return answer


class _Bill:
    """The payments for the attempts of one request; without a budget they cost nothing.

    A payment that is neither settled nor released stays in the sums: the server may charge for it.

    Args:
        budget: the budget that pays; None for none.
        request: the request.
        account: account of the budget.
    """

    def __init__(self, budget: Budget | None, request: HasUsage, account: str = "") -> None:
        self._budget = budget
        self._request = request
        self._account = account
        self._paid = 0.0

    def pay(self) -> bool:
        """Pays one attempt in advance; returns False if a cap leaves no room for it."""
        if self._budget is None:
            return True
        paid = self._budget.reserve(self._request, self._account)
        self._paid = paid or 0.0
        return paid is not None

    def settle(self, answer: HasUsage | None) -> None:
        """Replaces the payment by the price of the answer; None if nothing is charged."""
        if self._budget is not None:
            self._budget.settle(self._paid, answer, self._account)

    def release(self) -> None:
        """Takes the payment back, because the attempt was not sent."""
        if self._budget is not None:
            self._budget.release(self._paid, self._account)
