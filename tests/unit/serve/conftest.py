"""A server with a scripted engine, for tests of requests and answers without a model."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from PIL import Image

from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.serve.jobs import (
    Answered,
    ChatRequest,
    Drawn,
    Event,
    Failed,
    ImageRequest,
    Preview,
    Progress,
    Text,
)

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient

from blip3o.serve.config import ServeConfig
from blip3o.serve.http.app import build_app
from blip3o.serve.http.service import Service

Asked = ChatRequest | ImageRequest


def dot(color: str = "red") -> Image.Image:
    return Image.new("RGB", (4, 4), color)


def script(request: Asked) -> Sequence[Event]:
    """Returns events: three words per answer, interleaved; images with previews, last one first."""
    if isinstance(request, ImageRequest):
        every = request.preview_every
        shown = [Preview(0, step, dot("blue"), None, 0.1) for step in (2, 4) if every]  # type: ignore[arg-type]
        images = [Drawn(index, dot()) for index in reversed(range(request.count))]
        return [Progress(1, 4), *shown, *images]
    if request.messages[-1].text == "fail":
        return [Text("a"), Failed("the work failed", "work")]
    cut = request.sampling.max_new_tokens == 1
    words = [
        Text(f"{word}{n} ", n) for word in (" one", "two", "three") for n in range(request.count)
    ]
    return [
        *words,
        *(Answered("length" if cut else "stop", 5, 3 + n, n) for n in range(request.count)),
    ]


@contextmanager
def answered_by(service: Service) -> Iterator[list[Asked]]:
    """Yields the list of received requests; a thread answers each with the script."""
    seen: list[Asked] = []

    def work() -> None:
        while service.queue.wait():
            job = service.queue.take_chat() or service.queue.take_rows()[0].job
            seen.append(job.request)
            for event in script(job.request):
                job.deliver(event)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield seen
    finally:
        service.queue.close()
        thread.join(10)


@pytest.fixture
def service(tiny_pipe: Blip3oPipeline) -> Service:
    return Service(
        [tiny_pipe], "m", ServeConfig(max_n=4, max_wait_ms=0, model_alias=("gpt-4o", "m"))
    )


@pytest.fixture
def seen(service: Service) -> Iterator[list[Asked]]:
    with answered_by(service) as requests:
        yield requests


@pytest.fixture
def client(service: Service, seen: list[Asked]) -> TestClient:
    return TestClient(build_app(service))
