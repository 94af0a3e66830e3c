"""The clerk of a server in the broker: answers orders from the journal, or by asking.

Requests for images, and for texts unless the server takes batches, are sent one by one.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

from blip3o.curate.asking.batches import Batches
from blip3o.curate.asking.journal import Journal
from blip3o.curate.asking.messages import Service
from blip3o.curate.asking.orders import Order, failing
from blip3o.curate.images import ImageStore
from blip3o.remote.chat import Answer, ChatRequest
from blip3o.remote.client import ChatClient
from blip3o.remote.cost import Budget, Prices
from blip3o.remote.http import TransientError
from blip3o.remote.images import ImageAnswer, ImageClient

_LOOK_S = 0.2
"""Time between two looks at a request that another machine has in flight."""


class Clerk:
    """One server: its clients, and as many threads as requests may be in flight.

    Args:
        service: the server.
        journal: the journal; the money spent is in the same folder.
        images: the store that image files go to.
        working: a context that marks the broker as busy.
    """

    def __init__(
        self,
        service: Service,
        journal: Journal,
        images: ImageStore,
        working: Callable[[], AbstractContextManager[None]],
    ) -> None:
        budget = Budget(
            journal.folder,
            prices=Prices(
                prompt=service.prompt_price,
                completion=service.completion_price,
                image=service.image_price,
            ),
            max_cost=service.max_cost,
            max_requests=service.max_requests,
        )
        self._budget = budget
        self._journal = journal
        self._store = images
        self._working = working
        self._pool = ThreadPoolExecutor(service.server.max_in_flight)
        self._chat = ChatClient(service.server, budget)
        self._images = ImageClient(service.server, service.size, budget, extra=dict(service.extra))
        self._batches = Batches(service, journal, budget, working)
        self._takes_batches = service.batches is not None
        self._never = threading.Event()

    def take(self, order: Order) -> None:
        """Answers an order, sooner or later."""
        if self._takes_batches and isinstance(order.request, ChatRequest):
            self._batches.take(order)
        else:
            self._pool.submit(self._serve, order)

    def _serve(self, order: Order) -> None:
        if not order.is_wanted:
            return
        with self._working(), failing([order]):
            while (claim := self._batches.claim(order)) == "in flight":
                time.sleep(_LOOK_S)
            if claim == "mine":
                self._ask(order)

    def _ask(self, order: Order) -> None:
        """Answers an order by asking the server; the answer is in the journal then."""
        key = order.asked.key
        try:
            answer = self._answer(order)
            if answer is None:
                raise self._budget.reached(order.request)
            if answer.outcome == "transport":
                raise TransientError(answer.text)
        except Exception:  # nothing is in flight any more
            self._journal.release(key)
            raise
        entry = order.asked.answered(answer, self._image_of(answer))
        self._journal.keep(entry)
        order.answer(entry)

    def _answer(self, order: Order) -> Answer | ImageAnswer | None:
        """Returns the answer after all attempts; None if a cap leaves no room."""
        if isinstance(order.request, ChatRequest):
            return self._chat.ask(order.request, self._never, order.asked.stage)
        return self._images.ask(order.request, self._never, order.asked.stage)

    def _image_of(self, answer: Answer | ImageAnswer) -> str:
        """Returns the sha256 of the image of an answer, which the store holds; empty for none."""
        if isinstance(answer, Answer) or not answer.data:
            return ""
        return self._store.add(answer.data)
