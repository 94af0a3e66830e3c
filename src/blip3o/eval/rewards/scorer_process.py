"""The server's side of the scorer's process: starts it, sends batches, notices its death."""

import dataclasses
import json
import multiprocessing
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Outcome
from blip3o.eval.rewards import Reward
from blip3o.eval.rewards.tasks import Task
from blip3o.eval.rewards.worker import run_scorer
from blip3o.imaging.load import ImageLimits

_END_S = 10.0
"""Longest time for a killed process to end."""


class ScorerDiedError(Exception):
    """The process has ended, or it was ended because it did not answer in time."""


@dataclasses.dataclass(frozen=True)
class ScorerInfo:
    """The scorer as it describes itself; see `Scorer`."""

    judge: str
    batch_size: int


class ScorerProcess:
    """A process that holds a scorer.

    It is started by "spawn", so it shares no memory, locks or device with the server.

    Args:
        place: module and attribute of the entry of `REWARDS`.
        overrides: changes of the benchmark's settings.
        limits: limits of the images.
    """

    def __init__(
        self, place: tuple[str, str], overrides: Sequence[str], limits: ImageLimits
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=run_scorer,
            args=(theirs, place, tuple(overrides), limits),
            name="blip3o-scorer",
            daemon=True,
        )
        self._process.start()
        theirs.close()  # so the pipe ends when the process does

    @property
    def pid(self) -> int:
        """Number of the process."""
        assert self._process.pid is not None, "it has been started"
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.is_alive()

    def loaded(self, timeout_s: float) -> ScorerInfo:
        """Waits until the scorer is loaded.

        Raises:
            ScorerDiedError: if the process ends before.
            UsageError: if the scorer cannot be loaded; the message says why.
        """
        message = self._receive(timeout_s)
        if "refused" in message:
            raise UsageError(message["refused"])
        return ScorerInfo(**message)

    def rewards(self, tasks: Sequence[Task], timeout_s: float) -> Iterator[tuple[int, Reward]]:
        """Yields (position, reward) of each image as soon as it is judged.

        Args:
            tasks: the images.
            timeout_s: longest time until the next reward.

        Raises:
            ScorerDiedError: if the process ends before all images are judged.
        """
        watch = threading.Timer(timeout_s, self._process.kill)
        watch.start()
        try:
            items = [dataclasses.asdict(task.item) for task in tasks]
            self._pipe.send_bytes(json.dumps(items).encode())
            for task in tasks:
                self._pipe.send_bytes(task.data)
        except OSError as error:
            raise ScorerDiedError(self._end()) from error
        finally:
            watch.cancel()
        left = set(range(len(tasks)))
        while left:
            message = self._receive(timeout_s)
            place, outcome = message.pop("place"), message["outcome"]
            if place not in left or outcome not in get_args(Outcome):
                self._process.kill()
                self._end()
                raise ScorerDiedError(f"it sent a wrong reward: image {place}, {outcome}")
            left.remove(place)
            yield place, Reward(**message)

    def kill(self) -> None:
        """Ends the process immediately."""
        self._process.kill()

    def close(self) -> None:
        """Ends the process and frees its resources."""
        self._end()
        self._pipe.close()

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        end = time.monotonic() + timeout_s
        try:
            # A pipe that is closed by the death of the process counts as readable.
            if self._pipe.poll(max(0.0, end - time.monotonic())):
                return json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError) as error:
            raise ScorerDiedError(self._end()) from error
        self._end()
        raise ScorerDiedError(f"it did not answer within {timeout_s:g} seconds")

    def _end(self) -> str:
        """Ends the process, and returns how it ended."""
        self._process.join(0.5)  # a pipe may close shortly before its process ends
        self._process.kill()
        self._process.join(_END_S)
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"it was killed by signal {-code}"
        return f"it ended with status {code}"
