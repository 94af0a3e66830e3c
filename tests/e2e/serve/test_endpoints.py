"""Every endpoint, called with OpenAI's client."""

import base64
import concurrent.futures
import io
import json
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from openai import OpenAI

QUICK: dict[str, Any] = {"num_inference_steps": 2}


def png(color: str = "red", side: int = 32) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), color).save(file, "PNG")
    return file.getvalue()


def uri(color: str = "red") -> str:
    return "data:image/png;base64," + base64.b64encode(png(color)).decode()


def opened(b64: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64)))


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read()


def image_message(text: str, *colors: str) -> Any:
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": uri(c)}} for c in colors]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def test_generations(client: "OpenAI") -> None:
    answer = client.images.generate(
        prompt="a red car", model="pocket", n=3, size="96x96", extra_body={"seed": 4, **QUICK}
    )
    assert answer.data is not None
    images = [opened(one.b64_json or "").convert("RGB").tobytes() for one in answer.data]
    assert len(set(images)) == 3
    again = client.images.generate(prompt="a red car", extra_body={"seed": 4, **QUICK})
    assert again.data is not None
    assert opened(again.data[0].b64_json or "").tobytes() == images[0]


def test_a_random_seed_is_returned(client: "OpenAI") -> None:
    first = client.images.generate(prompt="a cat", extra_body=QUICK)
    seed = (first.model_extra or {})["seed"]
    second = client.images.generate(prompt="a cat", extra_body={"seed": seed, **QUICK})
    assert first.data == second.data


def test_images_as_urls(client: "OpenAI") -> None:
    answer = client.images.generate(prompt="a cat", response_format="url", extra_body=QUICK)
    assert answer.data is not None
    assert Image.open(io.BytesIO(get(answer.data[0].url or ""))).size == (96, 96)


def test_generations_streamed(client: "OpenAI") -> None:
    events: list[Any] = list(
        client.images.generate(
            prompt="a red car", n=2, stream=True, extra_body={"seed": 4, **QUICK}
        )
    )
    kinds = [event.type for event in events]
    assert kinds[:2] == ["image_generation.progress"] * 2
    assert kinds[-2:] == ["image_generation.completed"] * 2
    assert [event.step for event in events[:2]] == [1, 2]
    whole = client.images.generate(prompt="a red car", n=2, extra_body={"seed": 4, **QUICK})
    assert whole.data is not None
    assert {e.b64_json for e in events[-2:]} == {one.b64_json for one in whole.data}


def test_edits_of_one_and_of_several_images(client: "OpenAI") -> None:
    made = set()
    for images in (png(), [png()], [png(), png("blue")]):
        answer = client.images.edit(
            image=images, prompt="make it green", n=1, extra_body={"seed": 1, **QUICK}
        )
        assert answer.data is not None
        assert opened(answer.data[0].b64_json or "").size == (96, 96)
        made.add(answer.data[0].b64_json)
    assert len(made) == 2


def test_variations(server: Any, client: "OpenAI") -> None:
    if hasattr(client.images, "create_variation"):
        answer = client.images.create_variation(image=png(), n=2, response_format="b64_json")
        assert answer.data is not None
        assert len({one.b64_json for one in answer.data}) == 2


def test_chat_about_text_and_images(client: "OpenAI") -> None:
    answer = client.chat.completions.create(
        model="pocket", messages=image_message("What is in the image?", "red", "blue")
    )
    choice = answer.choices[0]
    assert choice.message.content
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    short = client.chat.completions.create(
        model="pocket", messages=image_message("What is in the image?", "red"), max_tokens=1
    )
    assert short.choices[0].finish_reason == "length"


def test_a_streamed_chat_gives_the_same_answer(client: "OpenAI") -> None:
    messages: list[Any] = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "a red car"},
        *image_message("Describe the image in detail.", "red"),
    ]
    whole = client.chat.completions.create(model="pocket", messages=messages)
    chunks = list(
        client.chat.completions.create(
            model="pocket",
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    said = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(said).strip() == whole.choices[0].message.content
    assert len(said) > 2
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage


@pytest.mark.parametrize("colors", [(), ("red",)])
def test_chat_answers_with_an_image(client: "OpenAI", colors: tuple[str, ...]) -> None:
    ask: Any = {
        "model": "pocket",
        "messages": image_message("a blue car", *colors),
        "extra_body": {"modalities": ["image"], "seed": 3, **QUICK},
    }
    whole = client.chat.completions.create(**ask)
    (part,) = whole.choices[0].message.content  # type: ignore[misc]
    url = part["image_url"]["url"]  # type: ignore[index]
    assert opened(url.removeprefix("data:image/png;base64,")).size == (96, 96)
    chunks = list(client.chat.completions.create(**ask, stream=True))
    assert chunks[0].choices[0].delta.content == whole.choices[0].message.content
    if not colors:
        same = client.images.generate(prompt="a blue car", extra_body={"seed": 3, **QUICK})
        assert same.data is not None
        assert url.endswith(same.data[0].b64_json or "?")


def test_a_response_equals_the_chat_answer(client: "OpenAI") -> None:
    chat = client.chat.completions.create(
        model="pocket", messages=image_message("What is in the image?", "red")
    )
    parts: Any = [
        {"type": "input_image", "image_url": uri("red"), "detail": "auto"},
        {"type": "input_text", "text": "What is in the image?"},
    ]
    question: Any = [{"role": "user", "content": parts}]
    whole = client.responses.create(model="pocket", input=question)
    assert whole.output_text == chat.choices[0].message.content
    assert whole.usage is not None
    assert chat.usage is not None
    assert whole.usage.input_tokens == chat.usage.prompt_tokens
    with client.responses.stream(model="pocket", input=question) as stream:
        said = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        assert said == stream.get_final_response().output_text == whole.output_text


def test_a_response_draws_and_then_edits(client: "OpenAI") -> None:
    tools: Any = [{"type": "image_generation"}]
    ask: Any = {"model": "pocket", "tools": tools, "extra_body": {"seed": 3, **QUICK}}
    drawn = client.responses.create(input="a blue car", **ask)
    item, *_ = drawn.output
    assert item.type == "image_generation_call"
    same = client.images.generate(prompt="a blue car", extra_body={"seed": 3, **QUICK})
    assert same.data is not None
    assert item.result == same.data[0].b64_json
    turns: Any = [
        {"role": "user", "content": "a blue car"},
        *(one.model_dump() for one in drawn.output),
        {"role": "user", "content": "make it green"},
    ]
    edited: Any = client.responses.create(input=turns, **ask).output[0]
    assert edited.type == "image_generation_call"
    direct = client.images.edit(
        image=base64.b64decode(item.result or ""),
        prompt="make it green",
        extra_body={"seed": 3, **QUICK},
    )
    assert direct.data is not None
    assert edited.result == direct.data[0].b64_json


def test_an_image_answer_can_be_sent_back_read_and_edited(client: "OpenAI") -> None:
    drawing: Any = {"modalities": ["image"], "seed": 3, **QUICK}
    turns: Any = [{"role": "user", "content": "a blue car"}]
    answer = client.chat.completions.create(model="pocket", messages=turns, extra_body=drawing)
    message = json.loads(answer.model_dump_json(warnings="none"))["choices"][0]["message"]
    url = message["content"][0]["image_url"]["url"]
    question = "What is in the image?"
    read = client.chat.completions.create(
        model="pocket", messages=[*turns, message, {"role": "user", "content": question}]
    )
    direct = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    by_hand: Any = [
        *turns,
        {"role": "assistant", "content": "(an image)"},
        {"role": "user", "content": direct},
    ]
    same = client.chat.completions.create(model="pocket", messages=by_hand)
    assert read.choices[0].message.content == same.choices[0].message.content
    assert read.usage == same.usage
    edited = client.chat.completions.create(
        model="pocket",
        messages=[*turns, message, {"role": "user", "content": "make it green"}],
        extra_body=drawing,
    )
    assert edited.choices[0].message.content[0]["image_url"]["url"] != url  # type: ignore[index]


def test_models_health_metrics_and_pages(server: Any, client: "OpenAI") -> None:
    assert [model.id for model in client.models.list()] == ["pocket"]
    assert client.models.retrieve("pocket").owned_by == "blip3o"
    health = json.loads(get(f"{server.url}/health"))
    assert (health["live"], health["ready"]) == (True, True)
    client.images.generate(prompt="a cat", extra_body=QUICK)
    metrics = get(f"{server.url}/metrics").decode()
    for name in ("queue_size", "batch_size_bucket", "request_seconds_bucket", "images_total"):
        assert f"blip3o_{name}" in metrics
    paths = json.loads(get(f"{server.url}/openapi.json"))["paths"]
    page = get(f"{server.url}/docs").decode()
    assert all(path in page for path in paths if path != "/docs")
    assert "http://" not in page.replace(server.url, "")
    assert "https://" not in page


def test_a_result_does_not_depend_on_other_requests(client: "OpenAI") -> None:
    prompts = [f"a {color} {thing}" for color in ("red", "blue") for thing in ("car", "cat", "sun")]

    def draw(number: int) -> str:
        answer = client.images.generate(
            prompt=prompts[number],
            extra_body={"seed": number, "guidance_scale": 2 + number / 7, **QUICK},
        )
        assert answer.data is not None
        return answer.data[0].b64_json or ""

    alone = [draw(number) for number in range(len(prompts))]
    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        for _ in range(3):
            assert list(pool.map(draw, range(len(prompts)))) == alone
