"""The workers' side of the broker: starts it if there is none, and asks it."""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Client, Connection
from pathlib import Path

from blip3o.core.errors import PreemptedError, UsageError
from blip3o.core.lock import locked
from blip3o.curate.asking.messages import Service, Told, Wanted
from blip3o.curate.models import Lost, Place, Reply, Request

_START_S = 60.0
"""Longest wait for a new broker."""
_LOOK_S = 0.05
_RESTARTS = 3
"""Brokers that may end in a row without one answer."""


class BrokerClient:
    """Asks the broker of a run.

    Args:
        place: the run; its folder is created with the first request.
    """

    def __init__(self, place: Place) -> None:
        self._folder = place.folder.absolute()
        self._lost: Lost = place.lost
        self._connection: Connection | None = None

    def replies(self, service: Service, requests: Sequence[Request], stage: str) -> list[Reply]:
        """Returns the reply to each request, in order.

        Raises:
            UsageError: if the server refuses all requests, or an answer was lost.
            PreemptedError: if a cap is reached or the server does not answer. All answers of other
                requests are kept.
        """
        waiting = {
            number: Wanted(
                number=number, service=service, request=request, stage=stage, lost=self._lost
            )
            for number, request in enumerate(requests)
        }
        found: dict[int, Reply] = {}
        restarts = 0
        while waiting:
            try:
                connection = self._connected()
                for wanted in waiting.values():
                    connection.send(wanted)
                while waiting:
                    told: Told = connection.recv()
                    if told.reply is None:
                        self.close()  # the broker skips the requests that wait
                        raise (UsageError if told.is_final else PreemptedError)(told.fault)
                    found[told.number] = told.reply
                    waiting.pop(told.number, None)
                    restarts = 0
            except (EOFError, OSError) as error:  # the broker ended or was killed
                self.close()
                restarts += 1
                if restarts > _RESTARTS:
                    raise UsageError(
                        f"the process that asks servers ends at once: see {self._log}"
                    ) from error
        return [found[number] for number in range(len(requests))]

    def close(self) -> None:
        """Leaves the broker."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def _log(self) -> Path:
        return self._folder / "broker.log"

    def _connected(self) -> Connection:
        if self._connection is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            place = _private_folder()
            # A socket has a short name; the folder of a run may have a long one.
            name = hashlib.sha256(str(self._folder).encode()).hexdigest()[:24]
            socket = place / f"{name}.socket"
            with locked(place / f"{name}.lock"):
                self._connection = _connect(socket) or self._start(socket)
        return self._connection

    def _start(self, socket: Path) -> Connection:
        """Starts a broker in a session of its own, so that signals to the worker spare it."""
        socket.unlink(missing_ok=True)  # of a killed broker
        command = [sys.executable, "-m", "blip3o.curate.asking.broker", self._folder, socket]
        with self._log.open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        ends = time.monotonic() + _START_S
        # The started process leaves the broker behind and ends with 0; another status is a fault.
        while time.monotonic() < ends and not process.poll():
            connection = _connect(socket)
            if connection is not None:
                return connection
            time.sleep(_LOOK_S)
        raise UsageError(f"the process that asks servers does not start: see {self._log}")


def _connect(socket: Path) -> Connection | None:
    try:
        return Client(str(socket), "AF_UNIX")
    except (FileNotFoundError, ConnectionError):
        return None


def _private_folder() -> Path:
    """Returns a folder that only this user can enter: whoever reaches the socket is trusted.

    Raises:
        UsageError: if another user owns it.
    """
    folder = Path(tempfile.gettempdir()) / f"blip3o-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise UsageError(f"{folder} is open to other users: remove it, or set TMPDIR")
    return folder
