"""Answers parsed with the types of OpenAI's client; the engine is a script."""

import base64
import io
import json
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("openai")

from fastapi.testclient import TestClient
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.image_gen_completed_event import ImageGenCompletedEvent
from openai.types.image_gen_partial_image_event import ImageGenPartialImageEvent
from openai.types.images_response import ImagesResponse
from openai.types.responses import Response, ResponseStreamEvent
from PIL import Image
from pydantic import TypeAdapter

from blip3o.serve.jobs import (
    ChatRequest,
    ImageRequest,
)

TURN = {"role": "user", "content": "hi"}
CHAT, RESPOND, DRAW = "/v1/chat/completions", "/v1/responses", "/v1/images/generations"
TOOL = {"type": "image_generation"}
Asked = ChatRequest | ImageRequest


def post(client: TestClient, path: str, **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(client: TestClient, path: str, **body: Any) -> list[Any]:
    answer = client.post(path, json={**body, "stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line[:5] == "data:"]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize("n", [1, 3])
def test_several_answers_complete(client: TestClient, seen: list[Asked], n: int) -> None:
    answer = ChatCompletion.model_validate(
        post(client, CHAT, messages=[TURN], n=n, temperature=1, seed=7, stop="x")
    )
    assert [choice.index for choice in answer.choices] == list(range(n))
    said = [choice.message.content for choice in answer.choices]
    assert said == [f"one{k} two{k} three{k}" for k in range(n)]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 5
    assert answer.usage.completion_tokens == sum(3 + k for k in range(n))
    assert answer.usage.total_tokens == 5 + answer.usage.completion_tokens
    (request,) = seen
    assert isinstance(request, ChatRequest)
    assert request.count == n
    assert (request.sampling.temperature, request.sampling.seed) == (1.0, 7)
    assert request.sampling.stop == ("x",)
    assert (answer.model_extra or {})["seed"] == 7


def test_several_answers_streamed(client: TestClient) -> None:
    options = {"include_usage": True}
    events = streamed(client, CHAT, messages=[TURN], n=3, stream_options=options)
    chunks = [ChatCompletionChunk.model_validate(event) for event in events]
    order = [chunk.choices[0].index for chunk in chunks[:-1]]
    assert order == [0, 1, 2] * 4  # three words and the end of each, interleaved
    for index in range(3):
        own = [c.choices[0] for c in chunks[:-1] if c.choices[0].index == index]
        assert [one.delta.role for one in own] == ["assistant", None, None, None]
        words = "".join(one.delta.content or "" for one in own).split()
        assert words == [f"one{index}", f"two{index}", f"three{index}"]
        assert [one.finish_reason for one in own] == [None, None, None, "stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (5, 12)
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_has_usage_only_on_request(client: TestClient) -> None:
    assert all(event["choices"] for event in streamed(client, CHAT, messages=[TURN], n=2))


def test_several_images_in_a_chat(client: TestClient, seen: list[Asked]) -> None:
    answer = post(client, CHAT, messages=[TURN], n=3, modalities=["image"], max_tokens=9, top_p=0.5)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    for choice in answer["choices"]:
        assert choice["message"]["content"][0]["image_url"]["url"].startswith("data:image/png")
    assert seen[0].count == 3


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": [TURN], "n": 5}, "n"),
        (DRAW, {"prompt": "a", "n": 5}, "n"),
        (CHAT, {"messages": [TURN], "model": "gpt-3"}, "model"),
        (RESPOND, {"input": "a", "model": "gpt-3"}, "model"),
        (RESPOND, {"input": "a", "tools": [{**TOOL, "model": "dall-e-3"}]}, "tools.0.model"),
        (RESPOND, {"input": "a", "tools": [{**TOOL, "size": "7x7"}]}, "tools.0.size"),
        (RESPOND, {"input": "a", "tools": [{**TOOL, "action": "edit"}]}, "tools.0.action"),
        (RESPOND, {"input": "a", "tool_choice": "required"}, "tool_choice"),
        (RESPOND, {"input": ""}, "input.0.content"),
        (RESPOND, {"input": "a b " * 999}, "input"),
        (RESPOND, {"input": []}, "input"),
        (RESPOND, {"input": "a", "instructions": "an <image>"}, "instructions"),
        (RESPOND, {"input": "a", "max_output_tokens": 10**5}, "max_output_tokens"),
        (RESPOND, {"input": [{"type": "item_reference", "id": "msg_0"}]}, "input.0.id"),
        (RESPOND, {"input": [{"type": "image_generation_call"}, TURN]}, "input.0.result"),
        (RESPOND, {"input": [{"role": "assistant", "content": "a"}]}, "input"),
        (RESPOND, {"input": "a", "stream_options": {}}, "stream_options"),
        (
            RESPOND,
            {"input": [{"type": "image_generation_call", "result": "@"}, TURN]},
            "input.0.result",
        ),
        (CHAT, {"messages": [TURN], "stream_options": {"include_usage": True}}, "stream_options"),
        (CHAT, {"messages": [TURN], "max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        (CHAT, {"messages": [TURN], "max_completion_tokens": 9999}, "max_completion_tokens"),
        (CHAT, {"messages": [TURN], "max_tokens": 9999}, "max_tokens"),
    ],
)
def test_the_invalid_field_is_named(client: TestClient, path: str, body: Any, param: str) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code in (400, 404)
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["message"]


def test_both_names_of_the_limit_may_have_the_same_value(
    client: TestClient, seen: list[Asked]
) -> None:
    post(client, CHAT, messages=[TURN], max_tokens=3, max_completion_tokens=3)
    assert isinstance(seen[0], ChatRequest)
    assert seen[0].sampling.max_new_tokens == 3


def test_a_foreign_name_is_refused_and_an_alias_is_not(client: TestClient) -> None:
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["m", "gpt-4o"]
    assert client.get("/v1/models/gpt-4o").json()["id"] == "gpt-4o"
    for name in ("m", "gpt-4o", None):
        assert post(client, CHAT, messages=[TURN], model=name)["model"] == "m"
        post(client, RESPOND, input="a", model=name)
        post(client, DRAW, prompt="a", model=name)
    error = client.post(CHAT, json={"messages": [TURN], "model": "gpt-5"}).json()["error"]
    assert error["code"] == "model_not_found"
    assert all(word in error["message"] for word in ("'gpt-5'", "'m'", "--model-alias"))


def test_a_response_in_text(client: TestClient, seen: list[Asked]) -> None:
    answer = Response.model_validate(
        post(
            client,
            RESPOND,
            input="hi",
            instructions="Be short.",
            metadata={"a": "b"},
            temperature=0.5,
            store=True,
        )
    )
    assert answer.output_text == "one0 two0 three0"
    assert answer.status == "completed"
    assert answer.metadata == {"a": "b"}
    assert answer.temperature == 0.5
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (5, 3)
    request = seen[0]
    assert isinstance(request, ChatRequest)
    assert [(m.role, m.text) for m in request.messages] == [("system", "Be short."), ("user", "hi")]


def test_a_response_that_is_cut_off(client: TestClient) -> None:
    answer = Response.model_validate(post(client, RESPOND, input="hi", max_output_tokens=1))
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    events = streamed(client, RESPOND, input="hi", max_output_tokens=1)
    assert events[-1]["type"] == "response.incomplete"


def checked(events: list[Any]) -> list[Any]:
    """Returns the events, validated with the client's types."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    return [kinds.validate_python(event) for event in events]


def test_a_response_in_text_streamed(client: TestClient) -> None:
    events = checked(streamed(client, RESPOND, input="hi"))
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 3,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    whole = "".join(event.delta for event in events[4:7])
    assert whole == events[7].text == events[8].part.text == events[-1].response.output_text
    assert whole == "one0 two0 three0"
    assert events[0].response.status == "in_progress"
    assert events[0].response.id == events[-1].response.id
    assert {event.item_id for event in events[3:9]} == {events[-1].response.output[0].id}


def test_a_response_with_an_image(client: TestClient, seen: list[Asked]) -> None:
    answer = Response.model_validate(post(client, RESPOND, input="a red dot", tools=[TOOL]))
    item, end = answer.output
    assert item.type == "image_generation_call"
    assert end.type == "message"  # without a message, clients ask again and get another image
    assert answer.output_text == ""
    assert (item.status, item.action, item.size) == ("completed", "generate", "4x4")
    assert Image.open(io.BytesIO(base64.b64decode(item.result or ""))).size == (4, 4)
    request = seen[0]
    assert isinstance(request, ImageRequest)
    assert (answer.model_extra or {})["seed"] == request.seed


@pytest.mark.parametrize("choice", ["auto", "required", TOOL, "none"])
def test_a_listed_tool_draws_unless_tool_choice_is_none(client: TestClient, choice: Any) -> None:
    answer = post(client, RESPOND, input="a dot", tools=[TOOL], tool_choice=choice)
    kinds = [item["type"] for item in answer["output"]]
    image = [] if choice == "none" else ["image_generation_call"]
    assert kinds == [*image, "message"]


def test_a_response_with_an_image_streamed(client: TestClient, seen: list[Asked]) -> None:
    tools = [{**TOOL, "partial_images": 1}]
    body = {"input": "a dot", "tools": tools, "num_inference_steps": 4}
    events = checked(streamed(client, RESPOND, **body))
    call = "image_generation_call"
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        f"{call}.in_progress",
        f"{call}.generating",
        f"{call}.partial_image",  # but not for the last step, which gives the image itself
        f"{call}.completed",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event.output_index for event in events[2:-1]] == [0] * 6 + [1] * 5
    assert events[5].partial_image_b64 != events[-1].response.output[0].result
    assert isinstance(seen[0], ImageRequest)
    assert seen[0].preview_every == 2
    post(client, RESPOND, **body)
    assert isinstance(seen[1], ImageRequest)
    assert seen[1].preview_every == 0


def test_a_conversation_goes_on_with_the_items_of_answers(
    client: TestClient, seen: list[Asked]
) -> None:
    drawn = Response.model_validate(post(client, RESPOND, input="a dot", tools=[TOOL]))
    said = Response.model_validate(post(client, RESPOND, input="hi"))
    items = [*drawn.output, said.output[0]]
    dumped = [item.model_dump() for item in items]
    named = [{"type": "item_reference", "id": item.id} for item in items]
    alone = [{"type": "image_generation_call", "id": items[0].id}, dumped[2]]
    for before in (dumped, named, alone):
        turns = [TURN, *before, {"role": "user", "content": "and now?"}]
        post(client, RESPOND, input=turns)
        request = seen[-1]
        assert isinstance(request, ChatRequest)
        assert [(m.role, m.text) for m in request.messages] == [
            ("user", "hi"),
            ("assistant", "(an image)"),
            ("assistant", "one0 two0 three0"),
            ("user", "<image>\nand now?"),
        ]
        assert [image.getpixel((0, 0)) for image in request.images] == [(255, 0, 0)]
        post(client, RESPOND, input=turns, tools=[TOOL])
        edit = seen[-1]
        assert isinstance(edit, ImageRequest)
        assert edit.kind == "edit"
        fresh = [{**TOOL, "action": "generate"}]
        post(client, RESPOND, input=turns, tools=fresh)
        new = seen[-1]
        assert isinstance(new, ImageRequest)
        assert new.kind == "generate"


def test_an_item_that_is_not_stored_cannot_be_referenced(client: TestClient) -> None:
    name = post(client, RESPOND, input="hi", store=False)["output"][0]["id"]
    answer = client.post(RESPOND, json={"input": [{"type": "item_reference", "id": name}, TURN]})
    assert answer.status_code == 400
    assert "send the item itself" in answer.json()["error"]["message"]


def test_a_failure_in_a_stream_is_an_event_and_otherwise_a_status(client: TestClient) -> None:
    failed = checked(streamed(client, RESPOND, input="fail"))[-1]
    assert failed.type == "response.failed"
    assert failed.response.error.message == "the work failed"
    assert client.post(RESPOND, json={"input": "fail"}).status_code == 500
    chunks = streamed(client, CHAT, messages=[{"role": "user", "content": "fail"}])
    assert chunks[-1]["error"]["message"] == "the work failed"


def test_images_have_the_types_of_the_client(client: TestClient) -> None:
    answer = ImagesResponse.model_validate(post(client, DRAW, prompt="a dot", n=2))
    assert answer.usage is not None
    assert answer.usage.input_tokens > 0
    events = streamed(client, DRAW, prompt="a dot", partial_images=1, num_inference_steps=4)
    kinds = [event["type"].removeprefix("image_generation.") for event in events]
    assert kinds == ["progress", "partial_image", "completed"]
    ImageGenPartialImageEvent.model_validate(events[1])
    ImageGenCompletedEvent.model_validate(events[2])
