"""Measures tokens per second of chats: several answers at a time against one at a time.

python benchmarks/chat.py [--clients 8] [--requests 10] [--repeats 5] [--threads N] [--note TEXT]

Two engines share a model and differ only in `max_chats`. They are measured in turn, never at the
same time. Every client sends its next request when the previous one is answered. The script checks
that both engines give equal answers.

Two loads ask the same questions about images. The bundled model gives short answers, for which most
of the time is spent on the prompt, and prompts are not batched. The other load has long answers:
its temperature is so high that the stop token is rarely drawn. On a shared machine, CPU time is a
better measure than wall-clock time.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from blip3o.generate.exact import steady_kernels

steady_kernels()

import torch  # noqa: E402
from PIL import Image  # noqa: E402

from blip3o.core.types import IMAGE_MARK, Message  # noqa: E402
from blip3o.generate.pipeline import Blip3oPipeline  # noqa: E402
from blip3o.generate.text_sampling import TextSampling  # noqa: E402
from blip3o.serve.batching import JobQueue  # noqa: E402
from blip3o.serve.config import ServeConfig  # noqa: E402
from blip3o.serve.engine import Engine  # noqa: E402
from blip3o.serve.jobs import Answered, ChatRequest, Event, Failed, Job, Text  # noqa: E402

BAR = 2.0
"""Required speedup of long answers."""
TEMPERATURES = {"long_answers": 100.0, "short_answers": 1.0}
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

    def ask(self, number: int, temperature: float, max_tokens: int) -> "Answer":
        """Asks a question and waits for the answer."""
        color = COLORS[number // len(QUESTIONS) % len(COLORS)]
        images = [Image.new("RGB", (96, 96), color)]
        text = f"{IMAGE_MARK}\n{QUESTIONS[number % len(QUESTIONS)]}"
        sampling = TextSampling(max_new_tokens=max_tokens, temperature=temperature, seed=number)
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
        return Answer("".join(pieces), end.answer_tokens)


class Answer(NamedTuple):
    """An answer and its number of tokens."""

    text: str
    num_tokens: int


class Measured(NamedTuple):
    """Measurements of one run of a load."""

    tokens_per_second: float
    tokens_per_cpu_second: float
    num_tokens: int
    answers: list[str]


def load(
    chatter: Chatter, clients: int, requests: int, temperature: float, max_tokens: int
) -> Measured:
    """Runs all clients and returns the measurements."""
    given: dict[int, Answer] = {}

    def one(client: int) -> None:
        for turn in range(requests):
            number = client * requests + turn
            given[number] = chatter.ask(number, temperature, max_tokens)

    threads = [threading.Thread(target=one, args=(client,)) for client in range(clients)]
    start, cpu_start = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    num_tokens = sum(one.num_tokens for one in given.values())
    answers = [given[number].text for number in sorted(given)]
    return Measured(num_tokens / seconds, num_tokens / cpu_seconds, num_tokens, answers)


def spread(values: list[float]) -> dict[str, float]:
    """Returns median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(
    chatters: dict[str, Chatter], temperature: float, options: argparse.Namespace
) -> dict[str, object]:
    """Returns the measurements of one load for both engines."""
    sizes = options.clients, options.requests, temperature, options.max_tokens
    runs: dict[str, list[Measured]] = {name: [] for name in chatters}
    for repeat in range(options.repeats):
        # The order alternates, because the first engine may find the machine in another state.
        for name in sorted(chatters, reverse=bool(repeat % 2)):
            runs[name].append(load(chatters[name], *sizes))
    answers = [run.answers for some in runs.values() for run in some]
    pairs = list(zip(runs["together"], runs["one_by_one"], strict=True))
    return {
        "tokens_of_a_run": runs["together"][0].num_tokens,
        "requests_of_a_run": options.clients * options.requests,
        "answers_are_equal": all(one == answers[0] for one in answers),
        "speedup": spread([a.tokens_per_second / b.tokens_per_second for a, b in pairs]),
        "speedup_by_cpu_time": spread(
            [a.tokens_per_cpu_second / b.tokens_per_cpu_second for a, b in pairs]
        ),
        **{
            name: {
                "tokens_per_second": spread([run.tokens_per_second for run in some]),
                "tokens_per_cpu_second": spread([run.tokens_per_cpu_second for run in some]),
            }
            for name, some in runs.items()
        },
    }


def main() -> None:
    """Measures both engines in turn, prints the results and writes them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=10, help="requests per client and run")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--note", default="", help="other load on the machine, for the results")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/chat.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # leaves the cores to the engines
    pipe = Blip3oPipeline.from_pretrained(options.model, device="cpu", dtype=options.dtype)
    chatters = {
        "together": Chatter(pipe, options.threads, options.clients),
        "one_by_one": Chatter(pipe, options.threads, 1),
    }
    for chatter in chatters.values():
        load(chatter, options.clients, 1, 1.0, 8)  # warm-up
    measured = {name: measure(chatters, one, options) for name, one in TEMPERATURES.items()}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    results = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "dtype": str(pipe.dtype),
        "threads": options.threads,
        "note": options.note,
        "load_average": os.getloadavg()[0],
        "bar": BAR,
        "clients": options.clients,
        **measured,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
