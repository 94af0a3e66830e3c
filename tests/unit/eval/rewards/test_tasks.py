"""The queue of images."""

import threading
import time

import pytest

from blip3o.eval.benchmark import Item
from blip3o.eval.rewards.tasks import QueueFullError, Task, TaskQueue, UnavailableError


def tasks(count: int, size: int = 1) -> list[Task]:
    return [Task(Item(id=str(n), number=n), b"x" * size) for n in range(count)]


def queue(max_images: int = 10, max_bytes: int = 1000, wait_s: float = 0.0) -> TaskQueue:
    return TaskQueue(max_images, max_bytes, wait_s)


def test_images_come_out_in_their_order_and_in_batches() -> None:
    waiting, some = queue(), tasks(5)
    waiting.put(some[:2])
    waiting.put(some[2:])
    assert waiting.take(4, 0) == some[:4]
    assert waiting.take(4, 0) == some[4:]
    assert waiting.take(4, 0) == []


def test_a_batch_waits_for_images_of_other_requests() -> None:
    waiting, some = queue(wait_s=30.0), tasks(2)
    waiting.put(some[:1])
    threading.Timer(0.05, waiting.put, [some[1:]]).start()
    assert waiting.take(2, 0) == some


def test_a_batch_waits_no_longer_than_allowed() -> None:
    waiting, some = queue(wait_s=0.05), tasks(1)
    waiting.put(some)
    start = time.monotonic()
    assert waiting.take(2, 0) == some
    assert time.monotonic() - start < 5


def test_a_request_is_accepted_as_a_whole_or_not_at_all() -> None:
    waiting = queue(max_images=3)
    waiting.put(tasks(2))
    with pytest.raises(QueueFullError):
        waiting.put(tasks(2))
    assert len(waiting) == 2
    waiting.put(tasks(1))


def test_the_sizes_of_files_are_limited_unless_no_image_waits() -> None:
    waiting = queue(max_bytes=100)
    waiting.put(tasks(1, size=200))
    with pytest.raises(QueueFullError):
        waiting.put(tasks(1))


def test_images_that_nobody_waits_for_are_dropped_and_make_room() -> None:
    waiting, some = queue(max_images=3), tasks(3)
    waiting.put(some)
    some[0].reward.cancel()
    others = tasks(1)
    waiting.put(others)
    some[1].reward.cancel()
    assert waiting.take(9, 0) == [some[2], *others]


def test_images_return_to_the_front_even_if_the_queue_is_full_and_closed() -> None:
    waiting, some = queue(max_images=3), tasks(3)
    waiting.put(some)
    batch = waiting.take(2, 0)
    waiting.put(tasks(2))
    waiting.close("the end")
    waiting.put_back(batch)
    assert waiting.take(3, 0) == some


def test_an_image_that_has_killed_twice_is_judged_alone() -> None:
    waiting, some = queue(), tasks(4)
    some[1].deaths = some[2].deaths = 2
    waiting.put(some)
    assert [waiting.take(4, 0) for _ in some] == [[one] for one in some]


def test_a_closed_queue_accepts_nothing_and_a_failed_one_fails_what_waits() -> None:
    waiting, some = queue(), tasks(2)
    waiting.put(some)
    waiting.close("the end")
    with pytest.raises(UnavailableError, match="the end"):
        waiting.put(tasks(1))
    some[0].reward.cancel()
    waiting.fail("no scorer")
    with pytest.raises(UnavailableError, match="no scorer"):
        some[1].reward.result(0)
    assert waiting.closed == "no scorer"
