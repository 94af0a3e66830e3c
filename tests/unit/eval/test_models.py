"""Models behind servers as models that a benchmark scores; our own server as one of them."""

import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip3o import Blip3oPipeline
from blip3o.core.errors import UsageError
from blip3o.core.rng import image_generator
from blip3o.eval.benchmark import Item
from blip3o.eval.models import Asked, PipelineModel, RemoteModel, weights_fingerprint
from blip3o.eval.plan import Job
from blip3o.eval.report.results import Results
from blip3o.eval.scenes import ScenesBenchmark
from blip3o.eval.stages import evaluate
from blip3o.eval.start import run_remote
from blip3o.remote.chat import Answer, AnswerOutcome, ChatImage, ChatRequest
from blip3o.remote.http import ServerSettings
from blip3o.remote.images import ImageClient, ImageRequest

FEW = ScenesBenchmark(
    prompts_per_category=1,
    images_per_prompt=2,
    num_questions=3,
    num_captions=1,
    num_edits=2,
    num_reconstructions=0,
    wording_prompts_per_category=0,
    num_wording_questions=0,
    num_wording_edits=0,
    batch_size=4,
)


class Images(ImageClient):
    """Paints the color that the seed and the input images say; refuses some prompts."""

    def __init__(self, refused: str = "") -> None:
        super().__init__(ServerSettings(model="painter", url="http://x/v1", key_variable=""))
        self.requests: list[ImageRequest] = []
        self._refused = refused

    def images(self, requests: Sequence[ImageRequest]) -> list[Image.Image | str]:
        self.requests += requests
        return [self._one(request) for request in requests]

    def _one(self, request: ImageRequest) -> Image.Image | str:
        if self._refused and self._refused in request.prompt:
            return "not this"
        red, green, *_ = hashlib.sha256(repr((request.seed, request.images)).encode()).digest()
        return Image.new("RGB", (96, 96), (red, green, 0))


class Chat:
    """Answers "yes" with an outcome, in the reverse order."""

    name = "talker"

    def __init__(self, outcome: AnswerOutcome = "answered", text: str = "yes") -> None:
        self.requests: list[ChatRequest] = []
        self._answer = Answer(outcome=outcome, text=text)

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Answer]]:
        self.requests += requests
        for place in reversed(range(len(requests))):
            yield place, self._answer


def results_of(out: Path, images: Images, chat: Chat) -> Results:
    results = evaluate("scenes", FEW, RemoteModel(images, chat, FEW), out)
    assert results is not None
    return results


def verdicts_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]


def test_each_sample_has_its_own_seed_and_sources(tmp_path: Path) -> None:
    images, chat = Images(), Chat()
    results = results_of(tmp_path, images, chat)
    assert results.outcomes == {"judged": results.num_samples}
    assert results.model == {"name": "painter", "url": "http://x/v1"}
    drawn = [one for one in images.requests if not one.images]
    edits = [one for one in images.requests if one.images]
    assert (len(drawn), len(edits), len(chat.requests)) == (12, 2, 4)
    assert len({one.seed for one in drawn}) == 12
    assert all(0 <= one.seed < 2**31 for one in images.requests)
    wanted = image_generator(FEW.seed, 0, 1).initial_seed() % 2**31
    assert drawn[1].seed == wanted
    assert all(one.images[0].startswith(b"\x89PNG") for one in edits)
    assert [one.max_tokens for one in chat.requests] == [128] * 4
    assert all(isinstance(one.parts[0], ChatImage) for one in chat.requests)
    assert (tmp_path / "samples" / "question-0000" / "0.txt").read_text() == "yes"


def test_a_resumed_evaluation_asks_for_missing_samples_only(tmp_path: Path) -> None:
    results_of(tmp_path, Images(), Chat())
    (tmp_path / "samples" / "edit-0001" / "0.png").unlink()
    images, chat = Images(), Chat()
    results_of(tmp_path, images, chat)
    assert len(images.requests) == 2  # the group of the missing one
    assert not chat.requests


def test_refused_images_and_answers_are_failures_of_the_model(tmp_path: Path) -> None:
    results = results_of(tmp_path, Images("photo of"), Chat("refusal", "I cannot"))
    refused = [one for one in verdicts_of(tmp_path) if one["outcome"] == "missing"]
    assert results.outcomes["missing"] == len(refused)
    reasons = {one["data"]["reason"] for one in refused}
    assert reasons == {"not this", "refusal: I cannot"}
    assert results.figures["vqa_accuracy"] == 0
    assert any("missing of" in note and "count as failures" in note for note in results.notes)


def test_an_answer_that_is_cut_is_an_answer(tmp_path: Path) -> None:
    results = results_of(tmp_path, Images(), Chat("cut", "a red"))
    assert results.outcomes == {"judged": results.num_samples}


def test_a_lost_answer_ends_the_evaluation_and_keeps_the_samples(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did not answer 3 questions: HTTP 500"):
        results_of(tmp_path, Images(), Chat("transport", "HTTP 500"))
    assert (tmp_path / "samples" / "prompt-0000" / "1.png").exists()
    assert not (tmp_path / "results.json").exists()
    images = Images()
    results_of(tmp_path, images, Chat())
    assert all(one.images for one in images.requests)  # edits follow the questions


def test_a_server_does_not_reconstruct() -> None:
    job = Job(Item(id="r", number=0, task="reconstruction"), 0)
    with pytest.raises(UsageError, match="does not reconstruct"):
        RemoteModel(Images(), Chat(), FEW).outputs("reconstruction", [Asked(job, [])])


def test_the_fingerprint_tells_weights_apart(tiny_pipe: Blip3oPipeline) -> None:
    before = weights_fingerprint(tiny_pipe.model)
    assert PipelineModel(tiny_pipe, "tiny", FEW).identity["weights"] == before
    parameter = next(iter(tiny_pipe.model.parameters()))
    old = parameter.data.clone()
    try:
        parameter.data.flatten()[0] += 1
        assert weights_fingerprint(tiny_pipe.model) != before
    finally:
        parameter.data.copy_(old)
    assert weights_fingerprint(tiny_pipe.model) == before


# ---------------------------------------------------------------------------------------------


@pytest.fixture
def serve(tiny_pipe: Blip3oPipeline) -> Iterator[str]:
    """Our own server with the tiny model; returns its address."""
    pytest.importorskip("fastapi")
    import uvicorn

    from blip3o.serve.config import ServeConfig
    from blip3o.serve.http.app import build_app
    from blip3o.serve.http.service import Service

    service = Service([tiny_pipe], "tiny", ServeConfig(max_wait_ms=0, max_batch=2))
    service.start()
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build_app(service), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    server.should_exit = True
    thread.join()
    service.stop()


def test_our_own_server_is_scored_as_any_other(
    serve: str, tiny_pipe: Blip3oPipeline, tmp_path: Path
) -> None:
    settings = [
        "prompts_per_category=1",
        "images_per_prompt=1",
        "num_questions=3",
        "num_captions=1",
        "num_edits=2",
        "num_reconstructions=0",
        "wording_prompts_per_category=0",
        "num_wording_questions=0",
        "num_wording_edits=0",
    ]
    results = run_remote("scenes", serve, "tiny", tmp_path, settings)
    assert results is not None
    assert results.num_samples == 6 + 3 + 1 + 2
    assert results.outcomes.get("judged", 0) >= 6 + 2  # random words may be empty
    assert results.model == {"name": "tiny", "url": serve}
    assert results.title.startswith("scenes(")
    samples = sorted(str(one.relative_to(tmp_path / "samples")) for one in tmp_path.rglob("*.png"))
    assert len(samples) == 8
    first = Image.open(tmp_path / "samples" / "prompt-0000" / "0.png")
    prompt = json.loads((tmp_path / "items.jsonl").read_text().splitlines()[0])["prompt"]
    seed = image_generator(2025, 0, 0).initial_seed() % 2**31
    (expected,) = tiny_pipe(prompt, generator=[image_generator(seed, 0, 0)]).images
    assert first.size == expected.size
    assert first.tobytes() == expected.tobytes()
    again = run_remote("scenes", serve, "tiny", tmp_path, settings)
    assert again == results


def test_a_server_without_the_model_is_named(serve: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"HTTP 40[04].*another"):
        run_remote("scenes", serve, "another", tmp_path, ["prompts_per_category=1"])
