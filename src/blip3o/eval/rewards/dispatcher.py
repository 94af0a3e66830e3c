"""The thread that gives batches of images to the scorer's process, and replaces a dead process."""

import atexit
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.eval.rewards import Reward
from blip3o.eval.rewards.config import RewardServerConfig
from blip3o.eval.rewards.metrics import RewardMetrics
from blip3o.eval.rewards.scorer_process import ScorerDiedError, ScorerInfo, ScorerProcess
from blip3o.eval.rewards.tasks import Task, TaskQueue
from blip3o.imaging.load import ImageLimits

State = Literal["loading", "ready", "restarting", "failed", "stopped"]
_LOOK_S = 0.5
"""Seconds between two checks whether an idle process still lives."""
_LONGEST_PAUSE_S = 10.0
"""Longest pause after a failed start."""


class Dispatcher:
    """Owns the scorer's process.

    A reward is kept as soon as it arrives. If the process dies, the images without a reward return
    to the front of the queue, and a new process judges them. An image with which the process has
    died twice is judged alone; after `max_deaths` it is given up, with the outcome "transport".

    Args:
        place: module and attribute of the entry of `REWARDS`.
        overrides: changes of the benchmark's settings.
        queue: the waiting images.
        config: limits.
        metrics: counters.
        failed: called once, from the thread, if no scorer can be started.
    """

    def __init__(
        self,
        place: tuple[str, str],
        overrides: Sequence[str],
        queue: TaskQueue,
        config: RewardServerConfig,
        metrics: RewardMetrics,
        failed: Callable[[], object] = lambda: None,
    ) -> None:
        self.state: State = "loading"
        self.info: ScorerInfo | None = None
        self.trouble: str | None = None
        self._place = place
        self._overrides = overrides
        self._queue = queue
        self._config = config
        self._metrics = metrics
        self._failed = failed
        self._limits = ImageLimits(
            max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels
        )
        self._process: ScorerProcess | None = None
        self._stops = threading.Event()
        self._lock = threading.Lock()  # no process starts after `stop`
        self._thread = threading.Thread(target=self._run, name="blip3o-rewards", daemon=True)

    @property
    def pid(self) -> int | None:
        """Number of the scorer's process; None if there is none."""
        process = self._process
        return None if process is None else process.pid

    def start(self) -> None:
        """Begins to load the scorer."""
        # The process ignores SIGTERM, by which multiprocessing ends it when the interpreter exits.
        atexit.register(self._kill)
        self._thread.start()

    def stop(self) -> None:
        """Fails the waiting images, and ends thread and process."""
        self._queue.fail("the server has stopped")
        self._kill()
        self._thread.join()
        atexit.unregister(self._kill)

    def _kill(self) -> None:
        self._stops.set()
        with self._lock:
            if self._process is not None:
                self._process.kill()

    def _run(self) -> None:
        try:
            self._work()
            self.state = "stopped"
        except BaseException as error:  # noqa: BLE001  (clients are waiting)
            self.trouble = f"the scorer cannot be used: {error}"
            if not isinstance(error, UsageError):
                self.trouble = f"the reward server failed: {type(error).__name__}: {error}"
            self.state = "failed"
            say(f"blip3o: {self.trouble}")
        finally:
            self._close()
            self._queue.fail(self.trouble or "the server has stopped")
            if self.state == "failed":
                self._failed()

    def _work(self) -> None:
        while not self._stops.is_set():
            process, info = self._process, self.info
            if process is None or info is None or not process.is_alive:
                self._start_process()
                continue
            if batch := self._queue.take(info.batch_size, _LOOK_S):
                if process.is_alive:
                    self._judge(process, batch)
                else:
                    self._queue.put_back(batch)

    def _start_process(self) -> None:
        """Starts a process and waits until its scorer is loaded.

        Raises:
            UsageError: if this fails too often, or if the scorer refuses its first start.
        """
        if self._process is not None:
            self._metrics.died()
            say("blip3o: the scorer has died; it is started again")
            self._close()
        if self.info is not None:
            self.state = "restarting"
        for attempt in range(self._config.max_starts):
            with self._lock:
                if self._stops.is_set():
                    return
                self._process = ScorerProcess(self._place, self._overrides, self._limits)
            try:
                info = self._process.loaded(self._config.load_timeout_s)
            except (ScorerDiedError, UsageError) as error:
                self._close()
                if isinstance(error, UsageError) and self.info is None:
                    raise
                if not self._stops.is_set():
                    say(f"blip3o: the scorer could not be started: {error}")
                self._stops.wait(min(0.2 * 4**attempt, _LONGEST_PAUSE_S))
                continue
            if self.info not in (None, info):
                raise UsageError(
                    f"the scorer was {self.info} and is now {info}: its files have changed; start "
                    "the server again, because another judge gives other rewards"
                )
            self.info = info
            self.state = "ready"
            return
        if not self._stops.is_set():
            raise UsageError(
                f"it could not be started {self._config.max_starts} times in a row; the log of "
                "this server says why"
            )

    def _judge(self, process: ScorerProcess, batch: Sequence[Task]) -> None:
        start = time.monotonic()
        for task in batch:
            self._metrics.waited(start - task.arrived)
        left = dict(enumerate(batch))
        try:
            for place, reward in process.rewards(batch, self._config.judge_timeout_s):
                self._answer(left.pop(place), reward)
        except ScorerDiedError as error:
            if not self._stops.is_set():
                say(f"blip3o: the scorer died with {len(left)} images in work: {error}")
            self._return(list(left.values()))
        except BaseException:  # a bug: `_run` fails everything in the queue
            self._queue.put_back(list(left.values()))
            raise
        else:
            self._metrics.batch(len(batch), time.monotonic() - start)

    def _return(self, tasks: Sequence[Task]) -> None:
        """Puts the images of a dead process back, except those that it died with too often."""
        kept: list[Task] = []
        for task in tasks:
            task.deaths += 1
            if task.deaths < self._config.max_deaths:
                kept.append(task)
            else:
                error = f"the scorer died {task.deaths} times with this image in work"
                reward = Reward(score=None, outcome="transport", data={"error": error})
                self._answer(task, reward)
        self._queue.put_back(kept)

    def _answer(self, task: Task, reward: Reward) -> None:
        self._metrics.judged(reward.outcome)
        task.reward.set_result(reward)

    def _close(self) -> None:
        with self._lock:
            if self._process is not None:
                self._process.close()
                self._process = None
