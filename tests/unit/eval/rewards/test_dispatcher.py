"""The dispatcher, with processes in the test's own thread that die as they are told."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

pytest.importorskip("fastapi")

from blip3o.core.errors import UsageError
from blip3o.eval.benchmark import Item
from blip3o.eval.rewards import Reward
from blip3o.eval.rewards import dispatcher as module
from blip3o.eval.rewards.config import RewardServerConfig
from blip3o.eval.rewards.dispatcher import Dispatcher
from blip3o.eval.rewards.metrics import RewardMetrics
from blip3o.eval.rewards.scorer_process import ScorerDiedError, ScorerInfo
from blip3o.eval.rewards.tasks import Task, TaskQueue, UnavailableError

Script = Callable[[int, Sequence[Task]], Iterator[tuple[int, Reward]]]


class World:
    """Starts processes that behave as a test says, and remembers their batches."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.starts: list[ScorerInfo | Exception] = []
        self.judge: Script = lambda _, tasks: rewards_of(tasks)
        self.batches: list[list[int]] = []
        self.num_started = 0
        self.queue = TaskQueue(100, 10**9, 0.0)
        self.failed: list[str] = []
        patch.setattr(module, "ScorerProcess", self._process)
        patch.setattr(module, "_LONGEST_PAUSE_S", 0.01)

    def _process(self, *_: object) -> "FakeProcess":
        self.num_started += 1
        return FakeProcess(self, self.num_started)

    def run(self, **limits: Any) -> Dispatcher:
        def failed() -> None:
            self.failed.append("failed")

        config = RewardServerConfig(**limits)
        self.dispatcher = Dispatcher(("m", "a"), (), self.queue, config, RewardMetrics(), failed)
        self.dispatcher.start()
        return self.dispatcher


class FakeProcess:
    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self.pid = number
        self.is_alive = True

    def loaded(self, timeout_s: float) -> ScorerInfo:
        answer = self._world.starts.pop(0) if self._world.starts else ScorerInfo("j", 3)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def rewards(self, tasks: Sequence[Task], timeout_s: float) -> Iterator[tuple[int, Reward]]:
        self._world.batches.append([task.item.number for task in tasks])
        try:
            yield from self._world.judge(self.pid, tasks)
        except ScorerDiedError:
            self.is_alive = False
            raise

    def kill(self) -> None:
        self.is_alive = False

    def close(self) -> None:
        self.is_alive = False


def rewards_of(tasks: Sequence[Task]) -> Iterator[tuple[int, Reward]]:
    for place in reversed(range(len(tasks))):
        yield place, Reward(score=float(tasks[place].item.number))


def tasks(count: int) -> list[Task]:
    return [Task(Item(id=str(n), number=n), b"") for n in range(count)]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(monkeypatch)
    yield world
    world.dispatcher.stop()
    assert world.dispatcher.pid is None


def results(some: Sequence[Task]) -> list[Reward]:
    return [task.reward.result(10) for task in some]


def test_rewards_reach_their_images(world: World) -> None:
    some = tasks(7)
    world.queue.put(some)
    world.run()
    assert [one.score for one in results(some)] == [0, 1, 2, 3, 4, 5, 6]
    assert world.batches == [[0, 1, 2], [3, 4, 5], [6]]
    assert world.dispatcher.info == ScorerInfo("j", 3)


def test_rewards_before_a_death_are_kept_and_the_rest_is_judged_again(world: World) -> None:
    def judge(number: int, batch: Sequence[Task]) -> Iterator[tuple[int, Reward]]:
        if number == 1:
            yield 1, Reward(score=100.0)
            raise ScorerDiedError
        yield from rewards_of(batch)

    world.judge = judge
    some = tasks(5)
    world.queue.put(some)
    world.run()
    assert [one.score for one in results(some)] == [0, 100, 2, 3, 4]
    assert world.batches == [[0, 1, 2], [0, 2, 3], [4]]
    assert world.num_started == 2


def test_an_image_that_kills_is_found_and_given_up_alone(world: World) -> None:
    def judge(_: int, batch: Sequence[Task]) -> Iterator[tuple[int, Reward]]:
        if any(task.item.number == 1 for task in batch):
            raise ScorerDiedError
        yield from rewards_of(batch)

    world.judge = judge
    some = tasks(4)
    world.queue.put(some)
    world.run(max_deaths=4)
    found = results(some)
    assert [one.score for one in found] == [0, None, 2, 3]
    assert found[1].outcome == "transport"
    assert "died 4 times" in found[1].data["error"]
    assert world.batches == [[0, 1, 2], [0, 1, 2], [0], [1], [1], [2], [3]]


def test_a_scorer_that_refuses_its_first_start_fails_all(world: World) -> None:
    world.starts = [UsageError("no weights")]
    some = tasks(1)
    world.queue.put(some)
    world.run()
    with pytest.raises(UnavailableError, match="no weights"):
        some[0].reward.result(10)
    wait_for_failure(world)
    assert world.num_started == 1


def test_a_scorer_that_often_dies_while_it_loads_fails_all(world: World) -> None:
    world.starts = [ScorerDiedError()] * 3
    some = tasks(1)
    world.queue.put(some)
    world.run(max_starts=3)
    with pytest.raises(UnavailableError, match="3 times in a row"):
        some[0].reward.result(10)
    wait_for_failure(world)


def test_a_scorer_that_sometimes_dies_while_it_loads_is_started_again(world: World) -> None:
    world.starts = [ScorerDiedError(), ScorerDiedError(), ScorerInfo("j", 3)]
    some = tasks(1)
    world.queue.put(some)
    world.run(max_starts=3)
    assert [one.score for one in results(some)] == [0]


def test_another_judge_after_a_restart_fails_all(world: World) -> None:
    """Rewards of two judges must not mix."""
    world.starts = [ScorerInfo("j", 3), ScorerInfo("k", 3)]
    world.judge = lambda number, batch: die() if number == 1 else rewards_of(batch)
    some = tasks(1)
    world.queue.put(some)
    world.run()
    with pytest.raises(UnavailableError, match="another judge"):
        some[0].reward.result(10)
    wait_for_failure(world)


def test_a_bug_of_the_dispatcher_fails_all(world: World) -> None:
    def judge(_: int, batch: Sequence[Task]) -> Iterator[tuple[int, Reward]]:
        raise RuntimeError("a bug")

    world.judge = judge
    some = tasks(1)
    world.queue.put(some)
    other = tasks(1)
    world.queue.put(other)
    world.run()
    for task in (*some, *other):
        with pytest.raises(UnavailableError, match="a bug"):
            task.reward.result(10)
    wait_for_failure(world)


def test_an_idle_dead_process_is_replaced(world: World) -> None:
    world.run()
    end = time.monotonic() + 10
    while world.dispatcher.state != "ready" and time.monotonic() < end:
        time.sleep(0.01)
    world.dispatcher._process.kill()  # type: ignore[union-attr]
    while world.num_started < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert world.num_started == 2


def die() -> Iterator[tuple[int, Reward]]:
    raise ScorerDiedError


def wait_for_failure(world: World) -> None:
    end = time.monotonic() + 10
    while not world.failed and time.monotonic() < end:
        time.sleep(0.01)
    assert (world.failed, world.dispatcher.state) == (["failed"], "failed")
    with pytest.raises(UnavailableError):
        world.queue.put(tasks(1))
