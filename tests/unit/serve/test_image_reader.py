"""Decoding threads, and the limit of pixels."""

import asyncio
import gc
import io
import threading
from collections.abc import Awaitable, Callable

import pytest
from PIL import Image

pytest.importorskip("fastapi")

from blip3o.serve.config import ServeConfig
from blip3o.serve.http.errors import ApiError
from blip3o.serve.http.image_reader import ImageReader
from blip3o.serve.http.workers import CLIENT_LEFT, PixelBudget, Workers


def png(width: int = 100, height: int = 100) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    return file.getvalue()


def reader(seen_px: int | None = None, **limits: float) -> ImageReader:
    return ImageReader(ServeConfig(**limits), seen_px)  # type: ignore[arg-type]


async def refusal(work: Awaitable[object]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await work
    return caught.value


def test_pixels_count_from_before_decoding_until_the_image_is_freed() -> None:
    async def story() -> None:
        some = reader(max_queue_pixels=25_000)
        first = await asyncio.create_task(some.from_bytes(png(), "image"))
        assert some.budget.num_pixels == 10_000
        second = await asyncio.create_task(some.from_bytes(png(), "image"))
        error = await refusal(asyncio.create_task(some.from_bytes(png(), "image")))
        assert (error.status, error.headers["Retry-After"]) == (429, "1")
        assert first.size == second.size
        del first
        gc.collect()
        assert some.budget.num_pixels == 10_000
        await asyncio.create_task(some.from_bytes(png(), "image"))

    asyncio.run(story())


def test_a_single_request_may_hold_more() -> None:
    async def story() -> None:
        some = reader(max_queue_pixels=100)
        own = [await some.from_bytes(png(), "image") for _ in range(3)]
        assert some.budget.num_pixels == 30_000
        error = await refusal(asyncio.create_task(some.from_bytes(png(), "image")))
        assert error.status == 429
        del own

    asyncio.run(story())


def test_an_image_that_is_refused_or_damaged_holds_nothing() -> None:
    async def story() -> None:
        some = reader()
        for data in (b"junk", png()[:-60], b""):
            assert (await refusal(some.from_bytes(data, "image"))).status == 400
        assert some.budget.num_pixels == 0

    asyncio.run(story())


def test_images_only_for_the_model_are_shrunk_to_its_size() -> None:
    async def story() -> None:
        some = reader(seen_px=32)
        assert (await some.from_bytes(png(), "image")).size == (100, 100)
        seen = await some.from_bytes(png(300, 20), "image", is_shown=False)
        plain = Image.open(io.BytesIO(png(300, 20))).resize((32, 32), Image.Resampling.BICUBIC)
        assert seen.tobytes() == plain.tobytes()
        assert some.budget.num_pixels == 32 * 32  # the first image has been freed

    asyncio.run(story())


class Gate:
    """Tasks that end when the gate opens."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.begun: list[int] = []

    def work(self, number: int) -> Callable[[], int]:
        def run() -> int:
            self.begun.append(number)
            assert self.is_open.wait(20)
            return number

        return run


def test_a_client_that_leaves_frees_its_place_in_the_queue() -> None:
    async def story() -> None:
        gate, workers = Gate(), Workers("x", 1, 10, 20)
        first = asyncio.create_task(workers.run(gate.work(1)))
        await asyncio.sleep(0.05)
        left = asyncio.Event()
        token = CLIENT_LEFT.set(left)
        second = asyncio.create_task(workers.run(gate.work(2)))
        CLIENT_LEFT.reset(token)
        third = asyncio.create_task(workers.run(gate.work(3)))
        await asyncio.sleep(0.05)
        left.set()
        assert (await refusal(second)).status == 499
        gate.is_open.set()
        assert await first == 1
        assert await third == 3
        assert gate.begun == [1, 3]

    asyncio.run(story())


def test_a_task_times_out_and_waiting_tasks_are_dropped() -> None:
    async def story() -> None:
        gate, workers = Gate(), Workers("decoding", 1, 10, 0.1)
        running, waiting = (asyncio.create_task(workers.run(gate.work(k))) for k in (1, 2))
        for one in (running, waiting):
            error = await refusal(one)
            assert error.status == 504
            assert "decoding took more than 0.1 seconds" in error.message
        gate.is_open.set()
        await asyncio.sleep(0.1)
        assert gate.begun == [1]
        assert await workers.run(lambda: 7) == 7

    asyncio.run(story())


def test_the_number_of_waiting_tasks_is_limited() -> None:
    async def story() -> None:
        gate, workers = Gate(), Workers("x", 1, 1, 20)
        open_ones = [asyncio.create_task(workers.run(gate.work(k))) for k in (1, 2)]
        await asyncio.sleep(0.05)
        assert (await refusal(workers.run(gate.work(3)))).status == 429
        gate.is_open.set()
        assert await asyncio.gather(*open_ones) == [1, 2]

    asyncio.run(story())


def test_each_owner_releases_its_own_pixels() -> None:
    budget = PixelBudget(100)
    budget.take(80, 1)
    with pytest.raises(ApiError, match="too many pixels"):
        budget.take(30, 2)
    budget.take(30, 1)  # no other owner holds any
    budget.release(110, 1)
    budget.take(1000, 2)
    assert budget.num_pixels == 1000
