"""The broker: the one process of a machine that sends the requests of a curation.

    python -m blip3o.curate.asking.broker FOLDER SOCKET      (started by the first worker)

Workers ask through a Unix socket. The broker outlives them: an answer to a worker that was killed
is kept in the journal, where the next worker finds it. It ends by itself when nobody asks any more.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Listener
from pathlib import Path

from blip3o.core.config import to_dict
from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.curate.asking.journal import Entry, Journal
from blip3o.curate.asking.messages import Service, Told, Wanted, described
from blip3o.curate.images import ImageStore
from blip3o.curate.models import Reply, Request
from blip3o.remote.cache import request_key
from blip3o.remote.chat import Answer, ChatRequest
from blip3o.remote.client import ChatClient
from blip3o.remote.cost import Budget, Prices
from blip3o.remote.images import ImageAnswer, ImageClient

_IDLE_S = 5.0
"""Time without workers and requests after which the broker ends."""
_LOOK_S = 0.2
"""Time between two looks at a request that another machine has in flight."""


class _Desk:
    """One server: its clients, and as many threads as requests may be in flight."""

    def __init__(self, service: Service, folder: Path) -> None:
        budget = Budget(
            folder,
            prices=Prices(
                prompt=service.prompt_price,
                completion=service.completion_price,
                image=service.image_price,
            ),
            max_cost=service.max_cost,
            max_requests=service.max_requests,
        )
        self.budget = budget
        self.pool = ThreadPoolExecutor(service.server.max_in_flight)
        self._chat = ChatClient(service.server, budget)
        self._images = ImageClient(service.server, service.size, budget, extra=dict(service.extra))
        self._never = threading.Event()

    def ask(self, request: Request, stage: str) -> Answer | ImageAnswer | None:
        """Returns the answer after all attempts; None if a cap leaves no room."""
        if isinstance(request, ChatRequest):
            return self._chat.ask(request, self._never, stage)
        return self._images.ask(request, self._never, stage)


class _Worker:
    """The connection of a worker; it may be gone when its answers come."""

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


class Broker:
    """Answers the requests of workers from the journal, or from the servers.

    Args:
        folder: folder of the journal and of the money spent.
        images: the store that image files go to.
    """

    def __init__(self, folder: Path, images: ImageStore) -> None:
        self.journal = Journal(folder)
        self._folder = folder
        self._images = images
        self._desks: dict[str, _Desk] = {}
        self._mutex = threading.Lock()
        self._busy = 0
        self._last = time.monotonic()

    @property
    def idle_s(self) -> float:
        """Seconds since the last worker left and the last answer came; 0 while there are any."""
        with self._mutex:
            return 0.0 if self._busy else time.monotonic() - self._last

    def attend(self, connection: Connection) -> None:
        """Answers a worker until it leaves."""
        with self._working():
            worker = _Worker(connection)
            for wanted in worker.wanted():
                try:
                    pool = self._desk(wanted.service).pool
                except UsageError as error:
                    worker.tell(Told(number=wanted.number, fault=str(error), is_final=True))
                    continue
                pool.submit(self._answer, worker, wanted)

    def reply(self, wanted: Wanted) -> Told:
        """Returns the answer to a request, which is asked at most once."""
        name = wanted.service.server.full_name
        request = described(wanted.service, wanted.request)
        key = request_key(name, request)
        while True:
            claim = self.journal.claim(key, again=wanted.lost == "ask")
            if claim != "in flight":
                break
            time.sleep(_LOOK_S)
        if claim == "lost" and wanted.lost == "stop":
            return Told(number=wanted.number, fault=_LOST, is_final=True)
        if claim == "answered":
            entry = self.journal.entry(key)
        elif claim == "lost":
            entry = Entry(
                key=key,
                model=name,
                stage=wanted.stage,
                request=request,
                outcome="refusal",
                text="the answer was lost",
            )
            self.journal.keep(entry)
        else:
            entry = self._asked(key, request, wanted)
        if isinstance(entry, Told):
            return entry
        assert entry is not None
        return Told(
            number=wanted.number,
            reply=Reply(
                outcome=entry.outcome,
                text=entry.text,
                image=entry.image,
                model=entry.model,
                request=key,
            ),
        )

    def _asked(self, key: str, request: dict[str, object], wanted: Wanted) -> Entry | Told:
        """Returns the answer of the server, which is in the journal then."""
        desk = self._desk(wanted.service)
        name = wanted.service.server.full_name
        try:
            answer = desk.ask(wanted.request, wanted.stage)
        except UsageError as error:
            self.journal.release(key)
            return Told(number=wanted.number, fault=str(error), is_final=True)
        if answer is None or answer.outcome == "transport":
            self.journal.release(key)
            fault = (
                str(desk.budget.reached(wanted.request))
                if answer is None
                else f"{name} did not answer: {answer.text}; the same command asks again"
            )
            return Told(number=wanted.number, fault=fault)
        entry = Entry(
            key=key,
            model=name,
            stage=wanted.stage,
            request=request,
            outcome=answer.outcome,
            text=answer.text,
            image=self._image_of(answer),
            stated_model=answer.model,
            fingerprint=answer.fingerprint if isinstance(answer, Answer) else "",
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
        )
        self.journal.keep(entry)
        return entry

    def _image_of(self, answer: Answer | ImageAnswer) -> str:
        """Returns the sha256 of the image of an answer, which the store holds; empty for none."""
        if isinstance(answer, Answer) or not answer.data:
            return ""
        return self._images.add(answer.data)

    def _answer(self, worker: _Worker, wanted: Wanted) -> None:
        if not worker.is_there:  # the next worker asks again, if it still needs the answer
            return
        with self._working():
            try:
                worker.tell(self.reply(wanted))
            except UsageError as error:
                worker.tell(Told(number=wanted.number, fault=str(error), is_final=True))
            except Exception as error:  # the worker must not wait for ever
                worker.tell(Told(number=wanted.number, fault=repr(error), is_final=True))
                raise

    def _desk(self, service: Service) -> _Desk:
        name = json.dumps(to_dict(service), sort_keys=True)
        with self._mutex:
            if name not in self._desks:
                self._desks[name] = _Desk(service, self._folder)
            return self._desks[name]

    @contextmanager
    def _working(self) -> Iterator[None]:
        with self._mutex:
            self._busy += 1
        try:
            yield
        finally:
            with self._mutex:
                self._busy -= 1
                self._last = time.monotonic()


_LOST = (
    "the answer to a request was lost, because the process that had sent it was killed; the server "
    "may have charged for it: run again with --lost ask to ask, and perhaps pay, once more, or "
    "with --lost drop to go on without it"
)


def serve(folder: Path, images: ImageStore, socket: Path) -> None:
    """Answers workers until none has asked for some seconds.

    Args:
        folder: folder of the journal.
        images: the store that image files go to.
        socket: the Unix socket; created by this call.
    """
    broker = Broker(folder, images)
    with broker.journal.sending(), Listener(str(socket), "AF_UNIX") as listener:
        threading.Thread(target=_accept, args=(listener, broker), daemon=True).start()
        while broker.idle_s < _IDLE_S:
            time.sleep(_LOOK_S)
        socket.unlink(missing_ok=True)  # later workers start another broker
        while broker.idle_s < _LOOK_S:  # one came in this moment
            time.sleep(_LOOK_S)


def _accept(listener: Listener, broker: Broker) -> None:
    with suppress(OSError):  # closed at the end
        while True:
            connection = listener.accept()
            threading.Thread(target=broker.attend, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    # The parent ends, so that the broker is no child of the worker: Ray kills the children of its
    # workers, and with a broker the answers that other workers have paid for.
    if os.fork():
        os._exit(0)
    _folder, _socket = map(Path, sys.argv[1:])
    say(f"the broker of {_folder} starts")
    serve(_folder, ImageStore(_folder.parent / "images"), _socket)
