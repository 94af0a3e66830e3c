"""A server compiles the sampler if it is asked to, and then draws with nothing else."""

from typing import Any

import pytest

from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.serve.batching import JobQueue
from blip3o.serve.config import ServeConfig
from blip3o.serve.engine import Engine
from blip3o.serve.jobs import Drawn, Event, ImageRequest, Job


class Silent:
    """An observer that ignores all events."""

    def batch(self, num_rows: int, seconds: float) -> None:
        """Ignores a batch."""

    def waited(self, seconds: float) -> None:
        """Ignores a wait."""


@pytest.mark.parametrize("is_compiled", [False, True])
def test_the_engine_draws_with_the_compiled_sampler(
    tiny_pipe: Blip3oPipeline, monkeypatch: pytest.MonkeyPatch, is_compiled: bool
) -> None:
    used: list[str] = []
    plain = tiny_pipe._draw

    def drawing(name: str) -> Any:
        def draw(*arguments: Any) -> Any:
            used.append(name)
            return plain(*arguments)

        return draw

    def compile_it() -> None:
        tiny_pipe._draw = drawing("compiled")

    monkeypatch.setattr(tiny_pipe, "_draw", drawing("plain"))
    monkeypatch.setattr(tiny_pipe, "compile", compile_it)
    chat = tiny_pipe.chat_template
    prompt = chat.image_prompt(chat.generate_messages("a red cat"))
    request = ImageRequest(
        kind="generate", prompt=prompt, num_inference_steps=2, guidance_scale=2.0
    )
    events: list[Event] = []
    queue = JobQueue(9, 1, 0.0)
    queue.put(Job(request, events.append))
    queue.close()
    config = ServeConfig(max_batch=1, max_wait_ms=0, compile=is_compiled)
    engine = Engine(tiny_pipe, queue, config, Silent())
    engine.run()
    assert isinstance(events[-1], Drawn)
    assert set(used) == {"compiled" if is_compiled else "plain"}
