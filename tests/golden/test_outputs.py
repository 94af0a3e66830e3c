"""Images, answers and server results of the bundled model, as they were recorded.

Images are compared to the last bit on the kind of machine that recorded them, elsewhere to a few
levels; words are always the same. See `conftest.py` for how to record.
"""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from blip3o import Blip3oPipeline
from blip3o.core.types import Message
from blip3o.serve.config import ServeConfig
from blip3o.serve.http.app import build_app
from blip3o.serve.http.service import Service

PROMPTS = ("a red cat", "two green apples", "a blue car to the left of a yellow tree")
QUESTIONS = ("What is in the image?", "Describe the image in detail.", "How many are there?")
MOST_LEVELS = 8


@pytest.fixture(scope="module")
def pipe() -> Blip3oPipeline:
    return Blip3oPipeline.from_pretrained("pocket", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def drawn(pipe: Blip3oPipeline) -> list[Image.Image]:
    return pipe(PROMPTS, generator=seeded(len(PROMPTS)), num_inference_steps=8).images


def seeded(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def compare_images(golden: Any, name: str, images: list[Image.Image]) -> None:
    """Compares images, side by side in one file, with the recorded ones."""
    rows = np.concatenate([np.asarray(image) for image in images], axis=1)
    file = golden.folder / "images" / f"{name}.png"
    if golden.is_recording:
        Image.fromarray(rows).save(file, optimize=True)
        (golden.folder / "images" / "machine.txt").write_text(f"{golden.machine}\n")
        return
    recorded = np.asarray(Image.open(file))
    if (golden.folder / "images" / "machine.txt").read_text().strip() == golden.machine:
        assert np.array_equal(rows, recorded)
    assert np.abs(rows.astype(int) - recorded).max() <= MOST_LEVELS


def compare_words(golden: Any, name: str, words: Any) -> None:
    file = golden.folder / "words.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    if golden.is_recording:
        file.write_text(json.dumps({**known, name: words}, indent=1, sort_keys=True) + "\n")
        return
    assert words == known[name]


def test_drawn_images(golden: Any, drawn: list[Image.Image]) -> None:
    compare_images(golden, "drawn", drawn)


def test_settings_of_drawing(golden: Any, pipe: Blip3oPipeline) -> None:
    images = pipe(
        PROMPTS[0],
        num_images_per_prompt=2,
        generator=seeded(2),
        num_inference_steps=4,
        guidance_scale=1.0,
        num_decoder_steps=2,
    ).images
    compare_images(golden, "unguided", images)


def test_edits_and_reconstructions(
    golden: Any, pipe: Blip3oPipeline, drawn: list[Image.Image]
) -> None:
    texts = ["make the cat blue", "add a red star"]
    edited = pipe.edit(drawn[:2], texts, generator=seeded(2), num_inference_steps=8).images
    compare_images(golden, "edited", edited)
    compare_images(golden, "reconstructed", pipe.reconstruct(drawn, generator=seeded(3)).images)


def test_answers(golden: Any, pipe: Blip3oPipeline, drawn: list[Image.Image]) -> None:
    answers = [pipe.ask(image, question) for image in drawn for question in QUESTIONS]
    together = pipe.answer_batch(drawn, QUESTIONS)
    text_only = list(pipe.stream([Message(role="user", text="Which color is a red cat?")]))
    warm = [pipe.ask(drawn[0], QUESTIONS[1], temperature=2.0, seed=seed) for seed in range(3)]
    compare_words(
        golden, "answers", {"alone": answers, "together": together, "text": text_only, "warm": warm}
    )


@pytest.fixture(scope="module")
def client(pipe: Blip3oPipeline) -> Iterator[TestClient]:
    service = Service([pipe], "pocket", ServeConfig(no_page=True, max_batch=4), num_threads=1)
    service.start()
    try:
        yield TestClient(build_app(service))
    finally:
        service.stop()


def test_results_of_the_server(golden: Any, client: TestClient, drawn: list[Image.Image]) -> None:
    body = {"prompt": PROMPTS[2], "n": 2, "seed": 3, "num_inference_steps": 6}
    made = client.post("/v1/images/generations", json=body).raise_for_status().json()
    images = [Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))) for one in made["data"]]
    compare_images(golden, "served", [image.convert("RGB") for image in images])
    buffer = io.BytesIO()
    drawn[0].save(buffer, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    content = [
        {"type": "text", "text": QUESTIONS[0]},
        {"type": "image_url", "image_url": {"url": uri}},
    ]
    chat = {"model": "pocket", "messages": [{"role": "user", "content": content}]}
    said = client.post("/v1/chat/completions", json=chat).raise_for_status().json()
    compare_words(
        golden, "chat", {"answer": said["choices"][0]["message"]["content"], "usage": said["usage"]}
    )
