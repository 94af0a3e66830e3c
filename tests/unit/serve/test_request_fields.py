"""Fields of requests: accepted if they have no effect, otherwise refused by name."""

import json
import re
from typing import Any

import pytest

pytest.importorskip("fastapi")

from pydantic import BaseModel

from blip3o.serve.http.errors import ApiError, validated
from blip3o.serve.http.schemas import (
    ChatCompletionRequest,
    EditForm,
    GenerationRequest,
    ResponseRequest,
    VariationForm,
)

TURN = {"role": "user", "content": "hello"}
CHAT, DRAW = (ChatCompletionRequest, {"messages": [TURN]}), (GenerationRequest, {"prompt": "a"})
RESPOND, EDIT = (ResponseRequest, {"input": "hello"}), (EditForm, {"prompt": "a"})
VARY: tuple[type[BaseModel], dict[str, Any]] = (VariationForm, {})
ALL = {"chat": CHAT, "draw": DRAW, "respond": RESPOND, "edit": EDIT, "vary": VARY}
TOOL = {"type": "image_generation"}
IMAGE = "data:image/png;base64,AAAA"

INERT: dict[str, dict[str, list[Any]]] = {
    "chat": {
        "logprobs": [False],
        "top_logprobs": [0],
        "logit_bias": [{}],
        "frequency_penalty": [0, 0.0],
        "presence_penalty": [0, -0.0],
        "response_format": [{"type": "text"}],
        "tools": [[]],
        "functions": [[]],
        "tool_choice": ["none", "auto"],
        "function_call": ["none", "auto"],
        "parallel_tool_calls": [True, False],
        "store": [True, False],
        "metadata": [{}, {"run": "7"}],
        "service_tier": ["auto", "default"],
        "user": ["me"],
        "safety_identifier": ["me"],
        "prompt_cache_key": ["k"],
        "prompt_cache_retention": ["24h"],
        "prompt_cache_options": [{"mode": "implicit"}],
        "reasoning_effort": ["none", "medium"],
        "verbosity": ["medium"],
        "modalities": [["text"]],
        "min_p": [0],
        "repetition_penalty": [1.0],
        "stop": [[], "end", ["a", "b", "c", "d"]],
        "temperature": [0, 1, 2, 0.7],
        "top_p": [0, 0.5, 1],
        "top_k": [-1, 0, 40],
        "seed": [0, 2**63 - 1],
        "n": [1, 3],
        "stream_options": [{"include_usage": True, "include_obfuscation": False}],
    },
    "draw": {
        "quality": ["auto", "standard"],
        "background": ["auto", "opaque"],
        "style": ["vivid"],
        "output_format": ["png"],
        "output_compression": [100, 0],
        "moderation": ["auto", "low"],
        "partial_images": [0, 3],
        "response_format": ["b64_json", "url"],
        "user": ["me"],
        "safety_identifier": ["me"],
    },
    "edit": {
        "quality": ["auto", ""],
        "background": ["auto"],
        "input_fidelity": ["low"],
        "output_compression": ["100"],
        "partial_images": ["2"],
        "stream": ["true", "false", ""],
        "seed": ["7", ""],
        "size": ["auto", ""],
    },
    "vary": {"quality": ["standard"], "n": ["2", ""], "user": ["", "me"]},
    "respond": {
        "instructions": ["Be short."],
        "tools": [
            [],
            [TOOL],
            [{**TOOL, "quality": "auto", "output_format": "png", "size": "auto"}],
        ],
        "tool_choice": ["auto", "none", "required", TOOL],
        "text": [{}, {"format": {"type": "text"}}, {"format": None, "verbosity": "medium"}],
        "reasoning": [{}, {"effort": None, "summary": None}, {"effort": "none"}],
        "truncation": ["auto", "disabled"],
        "include": [[], ["reasoning.encrypted_content"]],
        "background": [False],
        "store": [True, False],
        "metadata": [{"a": "b"}],
        "max_tool_calls": [1],
        "parallel_tool_calls": [True],
        "service_tier": ["auto"],
        "stream_options": [{"include_obfuscation": False}],
        "temperature": [0.3],
        "max_output_tokens": [1],
    },
}
EFFECTIVE: dict[str, dict[str, list[Any]]] = {
    "chat": {
        "logprobs": [True],
        "top_logprobs": [3],
        "logit_bias": [{"1": 5}],
        "frequency_penalty": [0.5, False],
        "presence_penalty": [-1],
        "response_format": [{"type": "json_object"}, {"type": "json_schema", "json_schema": {}}],
        "tools": [[{"type": "function", "function": {"name": "f"}}]],
        "tool_choice": ["required", {"type": "function", "function": {"name": "f"}}],
        "service_tier": ["priority"],
        "prediction": [{"type": "content", "content": "a"}],
        "audio": [{"voice": "a", "format": "wav"}],
        "reasoning_effort": ["high"],
        "verbosity": ["low"],
        "web_search_options": [{}],
        "moderation": [{"model": "m"}],
        "min_p": [0.1],
        "repetition_penalty": [1.1],
        "sede": [1],
    },
    "draw": {
        "quality": ["hd", "high"],
        "background": ["transparent"],
        "style": ["natural"],
        "output_format": ["webp"],
        "svg": [{"model": "m"}],
        "negative_prompt": ["b"],
    },
    "edit": {"input_fidelity": ["high"], "quality": ["low"], "sede": [""]},
    "vary": {"background": ["transparent"]},
    "respond": {
        "previous_response_id": ["resp_1"],
        "conversation": ["conv_1", {"id": "conv_1"}],
        "background": [True],
        "prompt": [{"id": "pmpt_1"}],
        "tools": [[{"type": "function", "name": "f"}], [{**TOOL, "quality": "high"}], [TOOL, TOOL]],
        "text": [{"format": {"type": "json_object"}}],
        "reasoning": [{"effort": "high"}],
        "include": [["message.output_text.logprobs"]],
    },
}
INTERNAL = re.compile(
    r"constrained|pydantic|union|Input should|valid (string|integer|dict)|tag|function-|instance"
    r"|NoneType|Value error|validation"
)


def cases(table: dict[str, dict[str, list[Any]]]) -> list[Any]:
    return [
        pytest.param(kind, name, value, id=f"{kind} {name} {json.dumps(value)}")
        for kind, fields in table.items()
        for name, values in fields.items()
        for value in values
    ]


@pytest.mark.parametrize(("kind", "name", "value"), cases(INERT))
def test_values_without_effect_are_accepted(kind: str, name: str, value: Any) -> None:
    schema, fields = ALL[kind]
    validated(schema, {**fields, name: value})


@pytest.mark.parametrize(("kind", "name", "value"), cases(EFFECTIVE))
def test_unsupported_values_are_refused_by_name(kind: str, name: str, value: Any) -> None:
    schema, fields = ALL[kind]
    with pytest.raises(ApiError) as caught:
        validated(schema, {**fields, name: value})
    assert caught.value.status == 400
    assert (caught.value.param or "").split(".")[0] == name
    assert name in caught.value.message
    assert not INTERNAL.search(caught.value.message)


@pytest.mark.parametrize("kind", ["chat", "draw", "respond"])
def test_null_counts_as_missing(kind: str) -> None:
    schema, fields = ALL[kind]
    nulls = dict.fromkeys(schema.model_fields, None) | {"field_of_a_newer_client": None}
    assert validated(schema, {**nulls, **fields}) == validated(schema, fields)


WRONG = ["text", 7, -1, 1.5, 10**30, True, [], [7], ["a"], {}, {"a": 1}, None]


def refusal(schema: type[BaseModel], fields: dict[str, Any]) -> ApiError | None:
    try:
        validated(schema, fields)
    except ApiError as error:
        return error
    return None


@pytest.mark.parametrize("kind", ALL)
def test_every_wrong_type_gets_a_readable_error(kind: str) -> None:
    schema, fields = ALL[kind]
    refused = 0
    for name in schema.model_fields:
        for value in WRONG:
            error = refusal(schema, {**fields, name: value})
            if error is None:
                continue
            refused += 1
            assert error.message.removeprefix("unknown parameter '").startswith(name)
            assert (error.param or "").split(".")[0] == name
            assert not INTERNAL.search(error.message), error.message
            assert error.message.isascii()
            assert len(error.message) < 400
    assert refused > 5 * len(schema.model_fields)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"max_tokens": "7"}, 'max_tokens must be a whole number, got "7"'),
        ({"max_tokens": 1.5}, "max_tokens must be a whole number, got 1.5"),
        ({"temperature": "hot"}, 'temperature must be a number, got "hot"'),
        ({"temperature": 2.5}, "temperature must be at most 2, got 2.5"),
        ({"stream": "yes"}, 'stream must be true or false, got "yes"'),
        ({"stop": 7}, "stop must be text or a list of texts"),
        ({"metadata": 7}, "metadata must be an object, got 7"),
        ({"metadata": {"a": 7}}, "metadata.a must be text, got 7"),
        ({"messages": "hi"}, 'messages must be a list, got "hi"'),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content must be text or a"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 7}]}]},
            "messages.0.content.0.text must be text, got 7",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "video", "text": "a"}]}]},
            "messages.0.content.0 has the type \"video\"; allowed are 'text'",
        ),
        (
            {"messages": [{"role": "tool", "content": "a"}]},
            "messages.0.role must be 'system', 'developer', 'user' or 'assistant', got \"tool\"",
        ),
    ],
)
def test_errors_state_the_allowed_values(value: dict[str, Any], words: str) -> None:
    with pytest.raises(ApiError) as caught:
        validated(ChatCompletionRequest, {"messages": [TURN], **value})
    assert caught.value.message.startswith(words)


ANSWERS_SENT_BACK: dict[str, dict[str, Any]] = {
    "all fields": {
        "role": "assistant",
        "content": "hi",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": [],
    },
    "null tool calls": {"role": "assistant", "content": "hi", "tool_calls": None},
    "nothing said": {"role": "assistant", "content": None, "refusal": None},
    "no content": {"role": "assistant"},
    "a refusal": {"role": "assistant", "content": None, "refusal": "No."},
    "notes of a proxy": {"role": "assistant", "content": "a", "provider_specific_fields": {"x": 1}},
    "thoughts": {"role": "assistant", "content": "a", "reasoning_content": "hm"},
    "an image": {
        "role": "assistant",
        "content": [{"type": "image_url", "image_url": {"url": IMAGE}}],
        "refusal": None,
    },
    "an image and text": {
        "role": "assistant",
        "content": [{"type": "text", "text": "here"}, {"type": "image_url", "image_url": IMAGE}],
    },
    "output text": {
        "role": "assistant",
        "content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": None}],
    },
}


@pytest.mark.parametrize("name", ANSWERS_SENT_BACK)
def test_an_answer_can_be_sent_back_in_the_form_of_each_client(name: str) -> None:
    turns = [TURN, ANSWERS_SENT_BACK[name], TURN]
    validated(ChatCompletionRequest, {"messages": turns})


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
        {"type": "input_text", "text": "a"},
        {"type": "image_url", "image_url": IMAGE},
        {"type": "image_url", "image_url": {"url": IMAGE}},
        *({"type": "image_url", "image_url": {"url": IMAGE, "detail": d}} for d in ("low", "high")),
        {"type": "image_url", "image_url": {"url": IMAGE, "detail": "auto"}},
        {"type": "image_url", "image_url": {"url": IMAGE, "detail": None}},
        {"type": "input_image", "image_url": IMAGE, "detail": "auto", "file_id": None},
    ],
)
def test_parts_are_accepted_in_each_spelling(part: dict[str, Any]) -> None:
    turn = {"role": "user", "content": [part]}
    validated(ChatCompletionRequest, {"messages": [turn]})
    validated(ResponseRequest, {"input": [turn]})


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": None}, "messages.0"),
        ({"role": "user"}, "messages.0"),
        ({"role": "user", "content": "a", "name": "x"}, "messages.0.name"),
        ({"role": "user", "content": "a", "annotations": []}, "messages.0"),
        (
            {"role": "assistant", "content": "a", "tool_calls": [{"id": "1"}]},
            "messages.0.tool_calls",
        ),
        (
            {"role": "user", "content": [{"type": "input_image", "file_id": "f"}]},
            "messages.0.content.0",
        ),
    ],
)
def test_turns_with_unsupported_content_are_refused(message: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        validated(ChatCompletionRequest, {"messages": [message]})
    assert (caught.value.param or "").startswith(param)
