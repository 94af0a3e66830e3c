"""Bodies, paths and forms of programs and browsers: unusual but valid ones, and invalid ones."""

import gzip
import io
import json
from typing import Any

import pytest

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient
from PIL import Image

from blip3o.generate.text_settings import LONGEST_STOP
from blip3o.serve.jobs import ChatRequest, ImageRequest


def gif() -> bytes:
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "GIF")
    return file.getvalue()


CHAT, EDIT = "/v1/chat/completions", "/v1/images/edits"
TURN = {"role": "user", "content": "hi"}
BODY = json.dumps({"messages": [TURN]}).encode()
JSON = {"Content-Type": "application/json"}
GIF = gif()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (BODY, "application/json; charset=utf-8"),
        (BODY, "Application/JSON"),
        (BODY, "application/vnd.api+json"),
        (b"\xef\xbb\xbf" + BODY, "application/json"),
        (BODY.decode().encode("utf-16"), "application/json"),
        (b" \n" + BODY + b"\n", "application/json"),
    ],
)
def test_all_encodings_of_a_json_body_are_read(client: TestClient, body: bytes, kind: str) -> None:
    answer = client.post(CHAT, content=body, headers={"Content-Type": kind})
    assert answer.status_code == 200, answer.text


def nested(depth: int) -> bytes:
    return b'{"metadata":' + b'{"a":' * depth + b"1" + b"}" * (depth + 1)


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (BODY, {}, 400, "Content-Type: application/json"),
        (BODY, {"Content-Type": "text/plain"}, 400, "Content-Type: application/json"),
        (BODY, {"Content-Type": "application/x-www-form-urlencoded"}, 400, "application/json"),
        (
            gzip.compress(BODY, mtime=0),
            {**JSON, "Content-Encoding": "gzip"},
            415,
            "gzip is not supported",
        ),
        (b"", JSON, 400, "no body"),
        (BODY[:-1], JSON, 400, "not valid JSON"),
        (BODY.replace(b"hi", b"caf\xe9"), JSON, 400, "not valid UTF-8 (byte "),
        (b"[" * 100_000, JSON, 400, "nested too deeply"),
        (nested(100_000), JSON, 400, "nested too deeply"),
        (b'{"seed":' + b"9" * 5000 + b"}", JSON, 400, "a number that is too long"),
        (b'{"seed":1,' + BODY[1:-1] + b',"seed":2}', JSON, 400, "'seed' is given twice"),
        (b'{"messages":[{"role":"user","role":"system"}]}', JSON, 400, "'role' is given twice"),
    ],
)
def test_an_invalid_body_is_refused_with_a_reason(
    client: TestClient, body: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    answer = client.post(CHAT, content=body, headers=headers)
    assert (answer.status_code, words in answer.json()["error"]["message"]) == (status, True)
    assert answer.json()["error"]["code"]


@pytest.mark.parametrize("count", [30_000, 2_000_000])
@pytest.mark.parametrize(
    "start",
    [
        b'{"include":[1',
        b'{"messages":[{}',
        b'{"logit_bias":{"a":1},"stop":[""',
        b'{"0":[[]],"1":[[]',
    ],
)
def test_a_body_with_far_too_many_values_is_refused_before_validation(
    client: TestClient, start: bytes, count: int
) -> None:
    """Validation records every invalid value, so millions would exhaust the memory."""
    body = start + b",1" * count + b"]}"
    answer = client.post(CHAT, content=body, headers=JSON)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"
    is_parsed = count < 500_000  # larger bodies are refused before parsing
    assert ("values" if is_parsed else "brackets") in answer.json()["error"]["message"]


def test_commas_in_a_long_text_are_allowed(client: TestClient) -> None:
    turn = {"role": "user", "content": "a, b, [c]" * 5_000}
    answer = client.post(CHAT, json={"messages": [turn]})
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_a_post_with_a_trailing_slash_is_not_redirected(client: TestClient) -> None:
    answer = client.post(f"{CHAT}/", json={"messages": [TURN]}, follow_redirects=False)
    assert answer.status_code == 200


@pytest.mark.parametrize("blank", ["", " \n", []])
def test_empty_instructions_are_dropped(client: TestClient, seen: list[Any], blank: Any) -> None:
    answer = client.post(CHAT, json={"messages": [{"role": "system", "content": blank}, TURN]})
    assert answer.status_code == 200, answer.text
    (asked,) = seen
    assert isinstance(asked, ChatRequest)
    assert [message.role for message in asked.messages] == ["user"]


def test_empty_instructions_of_a_response_are_dropped(client: TestClient, seen: list[Any]) -> None:
    answer = client.post("/v1/responses", json={"input": "hi", "instructions": ""})
    assert answer.status_code == 200, answer.text
    assert [message.text for message in seen[0].messages] == ["hi"]


@pytest.mark.parametrize(("length", "status"), [(LONGEST_STOP, 200), (LONGEST_STOP + 1, 400)])
def test_the_longest_stop_text(client: TestClient, length: int, status: int) -> None:
    answer = client.post(CHAT, json={"messages": [TURN], "stop": "a" * length})
    assert answer.status_code == status
    if status == 400:
        assert answer.json()["error"]["param"].startswith("stop")


def test_a_seed_of_minus_one_is_random(client: TestClient, seen: list[Any]) -> None:
    seeds = set()
    for _ in range(2):
        body = {"messages": [TURN], "temperature": 1, "seed": -1}
        seeds.add(client.post(CHAT, json=body).json()["seed"])
    form = {"prompt": "blue", "seed": "-1"}
    seeds.add(client.post(EDIT, data=form, files={"image": ("a.gif", GIF)}).json()["seed"])
    assert len(seeds) == 3
    assert min(seeds) >= 0


def form(*parts: tuple[str, str | None, bytes]) -> tuple[bytes, dict[str, str]]:
    """Returns a form in the format of browsers; an unchosen file has an empty name."""
    body = b""
    for name, file, content in parts:
        more = "" if file is None else f'; filename="{file}"'
        body += f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode()
        body += content + b"\r\n"
    return body + b"--x--\r\n", {"Content-Type": "Multipart/Form-Data; boundary=x"}


PROMPT, IMAGE = ("prompt", None, b"blue"), ("image", "a.gif", GIF)


@pytest.mark.parametrize(
    "parts",
    [
        (PROMPT, IMAGE),
        (PROMPT, ("image[]", "a.gif", GIF)),
        (PROMPT, ("image", "", GIF)),
        (PROMPT, IMAGE, ("mask", "", b"")),
        (PROMPT, IMAGE, ("mask", None, b"")),
        (PROMPT, IMAGE, ("image", "", b"")),
        (PROMPT, IMAGE, ("image[]", None, b"")),
        (PROMPT, IMAGE, ("n", None, b""), ("seed", None, b"")),
    ],
)
def test_blank_fields_of_a_form_count_as_missing(
    client: TestClient, seen: list[Any], parts: tuple[Any, ...]
) -> None:
    body, headers = form(*parts)
    answer = client.post(EDIT, content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    (asked,) = seen
    assert isinstance(asked, ImageRequest)
    assert len(asked.images) == 1


@pytest.mark.parametrize(
    ("parts", "words", "code"),
    [
        ((PROMPT,), "image is missing", "missing_required_parameter"),
        ((PROMPT, ("image", "", b"")), "image is missing", "missing_required_parameter"),
        ((PROMPT, ("image", "a.png", b"")), "empty", "invalid_image"),
        ((PROMPT, IMAGE, ("mask", "m.png", GIF)), "mask is not supported", "unsupported_value"),
        ((PROMPT, IMAGE, ("mask", None, b"x")), "mask is not supported", "unsupported_value"),
        (
            (PROMPT, IMAGE, ("paint", "m.png", GIF)),
            "unknown parameter 'paint'",
            "unknown_parameter",
        ),
        ((("prompt", "p.txt", b"blue"), IMAGE), "prompt must be text", "invalid_value"),
        ((PROMPT, PROMPT, IMAGE), "'prompt' is given twice", "invalid_value"),
    ],
)
def test_an_invalid_form_is_refused_with_a_reason(
    client: TestClient, parts: tuple[Any, ...], words: str, code: str
) -> None:
    body, headers = form(*parts)
    answer = client.post(EDIT, content=body, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, code)
    assert words in error["message"]
