"""Sampled answers over HTTP equal those of the pipeline: one or several, streamed or not."""

import base64
import io
from typing import Any

import pytest
from PIL import Image

from blip3o import Blip3oPipeline

QUESTION = "There is a red cat and a blue dog. What color is the cat?"
TURN = {"role": "user", "content": QUESTION}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "warm": {"temperature": 0.7, "seed": 3},
    "hot": {"temperature": 1.9, "top_p": 0.9, "seed": 0},
    "the last seed": {"temperature": 1.5, "seed": 2**63 - 1},
    "a stop text": {"temperature": 1.0, "seed": 5, "stop": "a"},
    "stop texts": {"temperature": 1.9, "seed": 11, "stop": ["ed", "r", "blu"]},
    "a limit": {"temperature": 2.0, "seed": 4, "max_tokens": 5},
    "more than the vocabulary": {"seed": 6, "extra_body": {"top_k": 10**12}},
}


@pytest.fixture(scope="module")
def pipe() -> Blip3oPipeline:
    return Blip3oPipeline.from_pretrained("pocket", device="cpu", dtype="fp32")


def of_the_pipeline(settings: dict[str, Any]) -> dict[str, Any]:
    ours = {**settings, **settings.get("extra_body", {})}
    ours.pop("extra_body", None)
    if "top_k" in ours:
        ours.setdefault("temperature", 1.0)
    if "max_tokens" in ours:
        ours["max_new_tokens"] = ours.pop("max_tokens")
    return ours


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("n", [1, 3])
def test_answers_are_those_of_the_pipeline(
    client: Any, pipe: Blip3oPipeline, name: str, n: int
) -> None:
    settings = SETTINGS[name]
    expected = pipe.ask_several(None, QUESTION, n, **of_the_pipeline(settings))
    asked: dict[str, Any] = {"model": "pocket", "messages": [TURN], "n": n, **settings}

    answer = client.chat.completions.create(**asked)
    assert [choice.message.content for choice in answer.choices] == expected

    pieces, reasons, usage = [""] * n, [""] * n, None
    options = {"include_usage": True}
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options=options):
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        usage = chunk.usage or usage
    assert [text.strip() for text in pieces] == expected
    assert reasons == [choice.finish_reason for choice in answer.choices]
    assert usage == answer.usage

    if n == 1 and "stop" not in settings:
        asked = {key: settings[key] for key in settings.keys() & {"temperature", "top_p"}}
        extra = {**settings.get("extra_body", {}), "seed": settings.get("seed")}
        limit = settings.get("max_tokens")
        said = client.responses.create(
            model="pocket", input=QUESTION, max_output_tokens=limit, extra_body=extra, **asked
        )
        assert [said.output_text] == expected


def test_answer_k_equals_the_answer_with_seed_plus_k(client: Any) -> None:
    def said(n: int, seed: int) -> list[str]:
        answer = client.chat.completions.create(
            model="pocket", messages=[TURN], n=n, temperature=1.9, seed=seed
        )
        return [choice.message.content for choice in answer.choices]

    assert said(3, 7) == [*said(1, 7), *said(1, 8), *said(1, 9)]


def test_answers_about_an_image_are_those_of_the_pipeline(
    client: Any, pipe: Blip3oPipeline
) -> None:
    image, file = Image.new("RGB", (120, 80), "green"), io.BytesIO()
    image.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    with client.chat.completions.stream(
        model="pocket", messages=[{"role": "user", "content": parts}], n=3, temperature=1.7, seed=9
    ) as events:
        choices = events.get_final_completion().choices
    expected = pipe.ask_several(image, "What?", 3, temperature=1.7, seed=9)
    assert [choice.message.content.strip() for choice in choices] == expected
