"""Measures chats of several clients: answers generated together against one at a time.

Two engines share a model and differ only in `max_chats`. Every client sends its next request when
the previous one is answered. Both engines must give equal answers.

Both cases ask the same questions about images. The bundled model gives short answers, for which
most of the time is spent on the prompt, and prompts are not batched. `long_answers` has a
temperature so high that the stop token is rarely drawn.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from measure import Case, Options, main
from PIL import Image

from blip3o.core.types import IMAGE_MARK, Message
from blip3o.generate.exact import steady_kernels
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.generate.text_sampling import TextSampling
from blip3o.serve.batching import JobQueue
from blip3o.serve.config import ServeConfig
from blip3o.serve.engine import Engine
from blip3o.serve.jobs import Answered, ChatRequest, Event, Failed, Job, Text

CLIENTS, REQUESTS, MAX_TOKENS = 8, 10, 96
QUESTIONS = ("What is in the image?", "How many are there?", "Describe the image.", "Where is it?")
COLORS = ("red", "navy", "green", "gold")


class Silent:
    """An observer of an engine that ignores all events."""

    def batch(self, num_rows: int, seconds: float) -> None:
        """See `Observer`."""

    def waited(self, seconds: float) -> None:
        """See `Observer`."""


class Chatter:
    """An engine and its queue.

    Args:
        pipe: the pipeline.
        num_threads: CPU threads.
        max_chats: answers that are generated at the same time.
    """

    def __init__(self, pipe: Blip3oPipeline, num_threads: int, max_chats: int) -> None:
        config = ServeConfig(max_chats=max_chats, max_batch=1)
        self.queue = JobQueue(10_000, 1, 0.0)
        self.engine = Engine(pipe, self.queue, config, Silent(), num_threads)
        self.engine.start()
        self.engine.wait_until_ready()

    def ask(self, number: int, temperature: float) -> tuple[str, int]:
        """Asks a question; returns the answer and its number of tokens."""
        color = COLORS[number // len(QUESTIONS) % len(COLORS)]
        images = [Image.new("RGB", (96, 96), color)]
        text = f"{IMAGE_MARK}\n{QUESTIONS[number % len(QUESTIONS)]}"
        sampling = TextSampling(max_new_tokens=MAX_TOKENS, temperature=temperature, seed=number)
        request = ChatRequest(
            messages=[Message(role="user", text=text)], images=images, sampling=sampling
        )
        pieces: list[str] = []
        ends: list[Event] = []
        is_done = threading.Event()

        def deliver(event: Event) -> None:
            if isinstance(event, Text):
                pieces.append(event.piece)
            elif isinstance(event, Answered | Failed):
                ends.append(event)
                is_done.set()

        self.queue.put(Job(request, deliver))
        is_done.wait()
        (end,) = ends
        assert isinstance(end, Answered), end
        return "".join(pieces), end.answer_tokens

    def serve(self, clients: int, requests: int, temperature: float) -> list[tuple[str, int]]:
        """Returns the answers to all requests of all clients."""

        def one(client: int) -> list[tuple[str, int]]:
            numbers = range(client * requests, (client + 1) * requests)
            return [self.ask(number, temperature) for number in numbers]

        with ThreadPoolExecutor(clients) as pool:
            return [answer for answers in pool.map(one, range(clients)) for answer in answers]


def answers(temperature: float, options: Options) -> Iterator[Case]:
    """All requests of all clients."""
    steady_kernels()
    pipe = Blip3oPipeline.from_pretrained("pocket", device=str(options.device))
    threads = torch.get_num_threads()
    clients, requests = options.pick((CLIENTS, REQUESTS), (2, 1))
    one_by_one, together = Chatter(pipe, threads, 1), Chatter(pipe, threads, clients)
    expected = together.serve(clients, requests, temperature)
    yield Case(
        unit="token",
        work=sum(num_tokens for _, num_tokens in expected),
        variants={
            "one_by_one": lambda: one_by_one.serve(clients, requests, temperature),
            "together": lambda: together.serve(clients, requests, temperature),
        },
        difference=lambda one, other: float(one != other),
        facts={"clients": clients, "answers": len(expected), "dtype": str(pipe.dtype)},
        is_long=True,
        most_rounds=3,
    )
    for chatter in (one_by_one, together):
        chatter.queue.close()


if __name__ == "__main__":
    main(__doc__, {"long_answers": partial(answers, 100.0), "short_answers": partial(answers, 1.0)})
