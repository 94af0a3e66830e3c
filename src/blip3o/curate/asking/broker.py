"""The broker: the one process of a machine that sends the requests of a curation.

    python -m blip3o.curate.asking.broker FOLDER SOCKET      (started by the first worker)

Workers ask through a Unix socket. The broker outlives them: an answer to a worker that was killed
is kept in the journal, where the next worker finds it. It ends by itself when no worker is left.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Listener
from pathlib import Path

from blip3o.core.config import to_dict
from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.curate.asking.clerk import Clerk
from blip3o.curate.asking.journal import Journal
from blip3o.curate.asking.messages import Service, Told
from blip3o.curate.asking.orders import Order, Worker
from blip3o.curate.images import ImageStore

_IDLE_S = 5.0
"""Time without workers and requests after which the broker ends."""
_LOOK_S = 0.2
"""Time between two looks at the idle time."""


class Broker:
    """Answers the requests of workers from the journal, or from the servers.

    Args:
        folder: folder of the journal and of the money spent.
        images: the store that image files go to.
    """

    def __init__(self, folder: Path, images: ImageStore) -> None:
        self.journal = Journal(folder)
        self._images = images
        self._clerks: dict[str, Clerk] = {}
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
        with self.working():
            worker = Worker(connection)
            for wanted in worker.wanted():
                try:
                    clerk = self._clerk(wanted.service)
                except UsageError as error:
                    worker.tell(Told(number=wanted.number, fault=str(error), is_final=True))
                    continue
                clerk.take(Order(wanted, worker))

    def _clerk(self, service: Service) -> Clerk:
        name = json.dumps(to_dict(service), sort_keys=True)
        with self._mutex:
            if name not in self._clerks:
                self._clerks[name] = Clerk(service, self.journal, self._images, self.working)
            return self._clerks[name]

    @contextmanager
    def working(self) -> Iterator[None]:
        """Marks the broker as busy while the block runs."""
        with self._mutex:
            self._busy += 1
        try:
            yield
        finally:
            with self._mutex:
                self._busy -= 1
                self._last = time.monotonic()


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
