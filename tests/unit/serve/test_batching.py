"""The queue: which jobs share a batch, wait, or are refused."""

import threading
import time
from typing import Any

import pytest
from PIL import Image

from blip3o.generate.text_sampling import TextSampling
from blip3o.serve.batching import JobQueue, QueueClosedError, QueueFullError
from blip3o.serve.jobs import ChatRequest, Event, Failed, ImageRequest, Job


def image(count: int = 1, **settings: Any) -> Job:
    sampling: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0, **settings}
    request = ImageRequest(kind="generate", count=count, **sampling)
    return Job(request, lambda event: None)


def chat() -> Job:
    return Job(ChatRequest(messages=(), images=(), sampling=TextSampling()), lambda event: None)


def queue_of(*jobs: Job, max_jobs: int = 99, max_batch: int = 4, max_wait_s: float = 0) -> JobQueue:
    queue = JobQueue(max_jobs, max_batch, max_wait_s)
    for job in jobs:
        queue.put(job)
    return queue


def test_jobs_take_turns_within_a_batch() -> None:
    many, one, two = image(6), image(), image(2)
    queue = queue_of(many, one, two)
    names = {id(many): "many", id(one): "one", id(two): "two"}
    batches = []
    while len(queue):
        batches.append([f"{names[id(row.job)]}{row.index}" for row in queue.take_rows()])
    assert batches[0] == ["many0", "one0", "two0", "many1"]
    assert batches[1] == ["many2", "two1", "many3", "many4"]
    assert batches[2] == ["many5"]


def test_only_compatible_jobs_share_a_batch_with_the_oldest() -> None:
    first, other_steps, plain, same = (
        image(),
        image(num_inference_steps=5),
        image(guidance_scale=1.0),
        image(guidance_scale=7.0, seed=9),
    )
    queue = queue_of(first, other_steps, plain, same)
    assert [row.job for row in queue.take_rows()] == [first, same]
    assert [row.job for row in queue.take_rows()] == [other_steps]
    assert [row.job for row in queue.take_rows()] == [plain]
    assert queue.take_rows() == []


def test_a_batch_waits_for_more_rows_but_not_long() -> None:
    queue = queue_of(image(), max_wait_s=0.2)
    assert queue.take_rows() == []
    start = time.monotonic()
    assert queue.wait()
    assert 0.1 < time.monotonic() - start < 2
    assert len(queue.take_rows()) == 1
    full = queue_of(*[image() for _ in range(4)], max_wait_s=60)
    assert len(full.take_rows()) == 4


def test_cancelled_jobs_leave_and_make_room() -> None:
    jobs = [image(), chat()]
    queue = queue_of(*jobs, max_jobs=2)
    with pytest.raises(QueueFullError):
        queue.put(chat())
    for job in jobs:
        job.cancel()
    queue.put(chat())
    assert len(queue) == 1
    assert queue.take_rows() == []


def test_waiting_images_have_a_pixel_limit() -> None:
    def edit(side: int) -> Job:
        given = (Image.new("RGB", (side, side)),)
        request = ImageRequest(kind="edit", images=given, num_inference_steps=4)
        return Job(request, lambda event: None)

    queue = JobQueue(99, 4, 0, max_pixels=5000)
    first = edit(100)
    queue.put(first)  # accepted despite its size, because it would otherwise never be done
    with pytest.raises(QueueFullError):
        queue.put(edit(1))
    queue.put(image())  # has no input images
    first.cancel()
    queue.put(edit(50))
    queue.put(edit(50))
    with pytest.raises(QueueFullError):
        queue.put(edit(1))

    queue = JobQueue(99, 4, 0, max_pixels=5000)
    queue.put(chat())
    queue.put(edit(100))  # the only one with images


def test_a_closed_queue_still_gives_its_jobs() -> None:
    queue = queue_of(image(), chat(), max_wait_s=60)
    queue.close()
    with pytest.raises(QueueClosedError, match="shutting down"):
        queue.put(chat())
    assert queue.wait()
    assert queue.take_chat() is not None
    assert len(queue.take_rows()) == 1
    assert not queue.wait()


def test_a_failed_queue_fails_all_jobs_immediately() -> None:
    events: list[Event] = []
    queue = JobQueue(9, 4, 60)
    for _ in range(3):
        queue.put(Job(ImageRequest(kind="generate"), events.append))
    waiting = threading.Thread(target=queue.wait)
    waiting.start()
    queue.fail("gone")
    waiting.join(5)
    assert not waiting.is_alive()
    assert events == [Failed("gone", "engine")] * 3
    with pytest.raises(QueueClosedError, match="gone"):
        queue.put(chat())
