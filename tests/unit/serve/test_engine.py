"""The engine with a tiny model: delivered events, its end, and the effects of failures."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from blip3o.core.types import Message
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.generate.text_sampling import TextSampling
from blip3o.serve.batching import JobQueue
from blip3o.serve.config import ServeConfig
from blip3o.serve.engine import Engine
from blip3o.serve.jobs import (
    Answered,
    ChatRequest,
    Drawn,
    Event,
    Failed,
    ImageRequest,
    Job,
    Progress,
    Text,
)

CONFIG = ServeConfig(max_batch=2, max_wait_ms=0)


class Notes:
    """Counts the calls of an engine."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def batch(self, num_rows: int, seconds: float) -> None:
        self.sizes.append(num_rows)

    def waited(self, seconds: float) -> None:
        pass


class Client:
    """A job and the events that it received."""

    def __init__(self, request: ImageRequest | ChatRequest) -> None:
        self.events: list[Event] = []
        self.job = Job(request, self.events.append)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def image(pipe: Blip3oPipeline, **settings: Any) -> Client:
    chat = pipe.chat_template
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0, **settings}
    prompt = chat.image_prompt(chat.generate_messages("a red cat"))
    return Client(ImageRequest(kind="generate", prompt=prompt, **settings))


def chat(text: str = "what is this?", max_tokens: int = 6) -> Client:
    message = Message(role="user", text=text)
    return Client(
        ChatRequest(messages=[message], images=[], sampling=TextSampling(max_new_tokens=max_tokens))
    )


def run(pipe: Blip3oPipeline, *clients: Client, hook: Callable[..., Any] | None = None) -> Notes:
    """Runs an engine until everything is done."""
    queue, notes = JobQueue(99, CONFIG.max_batch, 0.0), Notes()
    for client in clients:
        queue.put(client.job)
    queue.close()
    engine = Engine(pipe, queue, CONFIG, notes)
    with pytest.MonkeyPatch.context() as patch:
        # The sizes with equal bits depend on the machine; test_exact.py tests them.
        patch.setattr("blip3o.serve.images.equal_batch_sizes", lambda _, largest: [1, largest])
        if hook is not None:
            patch.setattr("blip3o.serve.images.ImageMaker.make", hook)
        engine.start()
        engine.join(120)
    assert not engine.is_alive()
    assert not engine.is_ready
    return notes


def test_images_progress_and_answers_arrive(tiny_pipe: Blip3oPipeline) -> None:
    drawn, said = image(tiny_pipe, count=3), chat()
    notes = run(tiny_pipe, drawn, said)
    assert [event.index for event in drawn.of(Drawn)] == [0, 1, 2]
    assert [event.step for event in drawn.of(Progress)] == [1, 2, 1, 2]
    assert notes.sizes == [2, 1]
    (end,) = said.of(Answered)
    assert end.answer_tokens <= 6
    words = tiny_pipe.ask(None, "what is this?", max_new_tokens=6)
    assert "".join(event.piece for event in said.of(Text)).strip() == words


def test_cancelled_work_is_dropped_at_a_step(tiny_pipe: Blip3oPipeline) -> None:
    drawn = image(tiny_pipe, num_inference_steps=50)
    plain = drawn.job.deliver

    def leave(event: Event) -> None:
        plain(event)
        drawn.job.cancel()

    drawn.job.deliver = leave
    after = image(tiny_pipe)
    run(tiny_pipe, drawn, after)
    assert len(drawn.events) == 1
    assert len(after.of(Drawn)) == 1


def test_errors_are_delivered_to_the_job_that_caused_them(tiny_pipe: Blip3oPipeline) -> None:
    long, good = chat("red " * 200), chat()
    run(tiny_pipe, long, good)
    (failed,) = long.events
    assert isinstance(failed, Failed)
    assert (failed.kind, "tokens" in failed.message) == ("request", True)
    assert good.of(Answered)


def test_a_failed_batch_is_retried_job_by_job(tiny_pipe: Blip3oPipeline) -> None:
    def poisoned(maker: Any, rows: Any, on_step: Any = None) -> list[str]:
        if any(row.request.seed == 7 for row in rows):
            raise RuntimeError("poison")
        return ["an image"] * len(rows)

    good, bad = image(tiny_pipe, seed=1), image(tiny_pipe, seed=7)
    notes = run(tiny_pipe, good, bad, hook=poisoned)
    assert good.events == [Drawn(0, "an image")]  # type: ignore[arg-type]
    (failed,) = bad.events
    assert isinstance(failed, Failed)
    assert failed.kind == "work"
    assert notes.sizes == [1]


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_a_lack_of_memory_ends_its_request_alone(tiny_pipe: Blip3oPipeline, error: Any) -> None:
    tries: list[int] = []

    def large(maker: Any, rows: Any, on_step: Any = None) -> list[str]:
        tries.append(len(rows))
        if any(row.request.seed == 7 for row in rows):
            raise error
        return ["an image"] * len(rows)

    good, bad, said = image(tiny_pipe, seed=1), image(tiny_pipe, seed=7), chat()
    last = image(tiny_pipe, seed=2)
    notes = run(tiny_pipe, good, bad, last, said, hook=large)
    assert (tries, notes.sizes) == ([2, 1, 1, 1], [1, 1])
    for client in (good, last):
        assert client.events == [Drawn(0, "an image")]  # type: ignore[arg-type]
    (failed,) = bad.events
    assert isinstance(failed, Failed)
    assert (failed.kind, "too little memory" in failed.message) == ("work", True)
    assert said.of(Answered)


def test_a_lost_device_ends_the_engine(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LostError(RuntimeError):
        pass

    def lost(maker: Any, rows: Any, on_step: Any = None) -> list[str]:
        raise LostError

    monkeypatch.setattr("blip3o.serve.engine.DEVICE_ERRORS", (LostError,))
    clients = [image(tiny_pipe, seed=seed) for seed in range(3)] + [chat()]
    run(tiny_pipe, *clients, hook=lost)
    for client in clients:
        (failed,) = client.events
        assert isinstance(failed, Failed)
        assert failed.kind == "engine"


def test_answers_go_on_between_the_steps_of_images(tiny_pipe: Blip3oPipeline) -> None:
    drawn = image(tiny_pipe, num_inference_steps=20)
    talks = [chat(f"what is {number}?", max_tokens=5) for number in range(3)]
    order: list[str] = []
    for name, client in (("image", drawn), *(("text", one) for one in talks)):
        plain = client.job.deliver

        def noted(event: Event, name: str = name, plain: Any = plain) -> None:
            order.append(name)
            plain(event)

        client.job.deliver = noted
    run(tiny_pipe, drawn, *talks)
    assert order[-1] == "image"  # the answers were complete before
    for number, client in enumerate(talks):
        words = tiny_pipe.ask(None, f"what is {number}?", max_new_tokens=5)
        assert "".join(event.piece for event in client.of(Text)).strip() == words


@pytest.mark.parametrize("dies_at", [1, 2])
def test_a_failed_engine_fails_all_jobs(tiny_pipe: Blip3oPipeline, dies_at: int) -> None:
    calls = 0

    def dies(maker: Any, rows: Any, on_step: Any = None) -> list[str]:
        nonlocal calls
        calls += 1
        if calls == dies_at:
            raise SystemExit
        raise RuntimeError("the first batch fails and is tried apart")

    before = threading.active_count()
    clients = [image(tiny_pipe, seed=seed) for seed in range(5)]
    run(tiny_pipe, *clients, hook=dies)
    for client in clients:
        (failed,) = client.events
        assert isinstance(failed, Failed)
        assert failed.kind == "engine"
    assert threading.active_count() <= before
