"""Bad requests: each gets a status and a message, and the server continues to answer."""

import base64
import http.client
import io
import json
import socket
import struct
import time
import zlib
from typing import Any

import pytest
from PIL import Image

GENERATE, EDIT, VARY = (f"/v1/images/{name}" for name in ("generations", "edits", "variations"))
CHAT, RESPOND = "/v1/chat/completions", "/v1/responses"
JSON = {"Content-Type": "application/json"}


def png(side: int = 16) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(file, "PNG")
    return file.getvalue()


def bomb() -> bytes:
    """Returns a PNG of a few bytes whose header declares 900 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def ask(*parts: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}], **fields}


def image(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def asked(url: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "input_image", "image_url": url}]}


def form(*parts: tuple[str, str, bytes]) -> tuple[bytes, dict[str, str]]:
    """Returns a multipart body of (name, file name or "", content)."""
    body = b""
    for name, file, content in parts:
        named = f'; filename="{file}"' if file else ""
        body += f'--x\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode()
        body += content + b"\r\n"
    return body + b"--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


def send(
    port: int, path: str, body: Any, headers: dict[str, str], method: str = "POST"
) -> tuple[int, dict[str, Any], dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    if isinstance(body, dict | list):
        body = json.dumps(body).encode()
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text), dict(answer.getheaders())
    finally:
        connection.close()


A_IMAGE = ("image", "a.png", png())
A_PROMPT = ("prompt", "", b"make it blue")
TURN = {"role": "user", "content": "hello"}
FILE = {"role": "user", "content": [{"type": "input_image", "image_url": "a", "file_id": "f"}]}

JSON_TABLE: dict[str, tuple[str, Any, int, str]] = {
    "no body": (GENERATE, b"", 400, "no body"),
    "junk": (GENERATE, b"{{{{", 400, "not valid JSON"),
    "cut off": (GENERATE, b'{"prompt": "a c', 400, "not valid JSON"),
    "bytes that are no text": (GENERATE, b"\xff\xfe\x00", 400, ""),
    "a list": (GENERATE, [], 400, "must be an object"),
    "a number": (GENERATE, b"7", 400, "must be an object"),
    "nested without end": (GENERATE, b"[" * 200_000, 400, ""),
    "endless number": (GENERATE, b'{"prompt":"a","seed":' + b"9" * 5000 + b"}", 400, ""),
    "no prompt": (GENERATE, {}, 400, "prompt"),
    "empty prompt": (GENERATE, {"prompt": ""}, 400, "at least 1 character"),
    "blank prompt": (GENERATE, {"prompt": "  \n"}, 400, "the prompt is empty"),
    "prompt of a wrong type": (GENERATE, {"prompt": 7}, 400, "prompt must be text"),
    "prompt of nothing": (GENERATE, {"prompt": None}, 400, "prompt must be text"),
    "long prompt": (GENERATE, {"prompt": "word " * 2000}, 400, "tokens; at most"),
    "huge prompt": (GENERATE, {"prompt": "a" * 2_000_000}, 400, "at most 100000 characters"),
    "image mark": (GENERATE, {"prompt": "a <image> of"}, 400, "a prompt cannot hold <image>"),
    "half a character": (GENERATE, b'{"prompt": "\\ud800"}', 400, ""),
    "half a character as a name": (GENERATE, b'{"prompt":"a","\\ud800":1}', 400, "Unicode"),
    "unknown field": (GENERATE, {"prompt": "a", "sede": 1}, 400, "unknown parameter 'sede'"),
    "negative prompt": (GENERATE, {"prompt": "a", "negative_prompt": "b"}, 400, "unknown"),
    "n of 0": (GENERATE, {"prompt": "a", "n": 0}, 400, "at least 1"),
    "huge n": (GENERATE, {"prompt": "a", "n": 10**9}, 400, "at most 10"),
    "n as text": (GENERATE, {"prompt": "a", "n": "2"}, 400, "n must be a whole number"),
    "n as a truth": (GENERATE, {"prompt": "a", "n": True}, 400, "n must be a whole number"),
    "n of a half": (GENERATE, {"prompt": "a", "n": 1.5}, 400, "n must be a whole number"),
    "steps of 0": (GENERATE, {"prompt": "a", "num_inference_steps": 0}, 400, "at least 1"),
    "many steps": (GENERATE, {"prompt": "a", "num_inference_steps": 51}, 400, "at most 50"),
    "guidance below 1": (GENERATE, {"prompt": "a", "guidance_scale": 0.5}, 400, "at least 1"),
    "guidance without end": (GENERATE, b'{"prompt":"a","guidance_scale":1e999}', 400, ""),
    "guidance of no number": (GENERATE, b'{"prompt":"a","guidance_scale":NaN}', 400, ""),
    "negative seed": (GENERATE, {"prompt": "a", "seed": -2}, 400, "at least 0"),
    "huge seed": (GENERATE, {"prompt": "a", "seed": 2**64}, 400, "below"),
    "other size": (GENERATE, {"prompt": "a", "size": "1024x1024"}, 400, "96x96"),
    "junk size": (GENERATE, {"prompt": "a", "size": "../../etc"}, 400, "96x96"),
    "other format": (GENERATE, {"prompt": "a", "response_format": "gif"}, 400, "'b64_json'"),
    "other model": (GENERATE, {"prompt": "a", "model": "dall-e-3"}, 404, "not served here"),
    "model as a path": (GENERATE, {"prompt": "a", "model": "../../etc/passwd"}, 404, "not served"),
    "long user": (GENERATE, {"prompt": "a", "user": "u" * 9999}, 400, "at most 512"),
    "no messages": (CHAT, {}, 400, "messages"),
    "empty messages": (CHAT, {"messages": []}, 400, "at least 1 item"),
    "unknown role": (CHAT, {"messages": [{"role": "root", "content": "a"}]}, 400, "'system'"),
    "assistant last": (CHAT, {"messages": [{"role": "assistant", "content": "a"}]}, 400, "last"),
    "late system": (CHAT, {"messages": [TURN, {**TURN, "role": "system"}, TURN]}, 400, "first"),
    "empty message": (CHAT, {"messages": [{"role": "user", "content": ""}]}, 400, "is empty"),
    "no parts": (CHAT, ask(), 400, "is empty"),
    "unknown part": (CHAT, ask({"type": "audio"}), 400, ""),
    "field in a message": (CHAT, {"messages": [{**TURN, "mood": "x"}]}, 400, "unknown"),
    "name in a message": (CHAT, {"messages": [{**TURN, "name": "x"}]}, 400, "messages.0.name"),
    "image mark in a chat": (CHAT, {"messages": [{**TURN, "content": "<image>"}]}, 400, "parts"),
    "long chat": (CHAT, {"messages": [{**TURN, "content": "a b " * 999}]}, 400, "tokens"),
    "temperature": (CHAT, {"messages": [TURN], "temperature": 2.1}, 400, "temperature"),
    "top_p": (CHAT, {"messages": [TURN], "top_p": 1.5}, 400, "top_p must be at most 1"),
    "tools": (CHAT, {"messages": [TURN], "tools": [{}]}, 400, "tools is not supported"),
    "many answers": (CHAT, {"messages": [TURN], "n": 11}, 400, "n must be at most 10"),
    "max_tokens of 0": (CHAT, {"messages": [TURN], "max_tokens": 0}, 400, "at least 1"),
    "huge max_tokens": (CHAT, {"messages": [TURN], "max_tokens": 99999}, 400, "at most 1024"),
    "steps of a text": (CHAT, {"messages": [TURN], "num_inference_steps": 1}, 400, "an image"),
    "many stops": (CHAT, {"messages": [TURN], "stop": ["a"] * 5}, 400, "at most 4"),
    "huge stop": (CHAT, {"messages": [TURN], "stop": "a" * 2_000_000}, 400, "at most 1000 "),
    "empty stop": (CHAT, {"messages": [TURN], "stop": [""]}, 400, "at least 1 character"),
    "much metadata": (CHAT, {"messages": [TURN], "metadata": {"a": "b" * 999}}, 400, "metadata"),
    "unknown modality": (CHAT, {"messages": [TURN], "modalities": ["smell"]}, 400, "'text'"),
    "file URL": (CHAT, ask(image("file:///etc/passwd")), 400, "reads no image URLs"),
    "metadata URL": (CHAT, ask(image("http://169.254.169.254/latest")), 400, "no image URLs"),
    "loopback URL": (CHAT, ask(image("http://127.0.0.1:8000/health")), 400, "no image URLs"),
    "URL that is no text": (CHAT, ask(image(7)), 400, "url must be text"),
    "bad base64": (CHAT, ask(image("data:image/png;base64,@@@@")), 400, "invalid base64"),
    "URI of a page": (CHAT, ask(image(uri(b"<html>", "text/html"))), 400, "begins with"),
    "no image": (CHAT, ask(image(uri(b"hello"))), 400, "not an image"),
    "empty image": (CHAT, ask(image(uri(b""))), 400, "empty"),
    "truncated image": (CHAT, ask(image(uri(png(200)[:-30]))), 400, "truncated"),
    "bomb": (CHAT, ask(image(uri(bomb()))), 400, "over the limit of 64000000 pixels"),
    "large image": (CHAT, ask(image(uri(b"\x89PNG" * 60_000))), 413, "over 200000 bytes"),
    "many images": (CHAT, ask(*[image(uri(png()))] * 5), 400, "at most 4"),
    "image by the assistant": (
        CHAT,
        {"messages": [TURN, {"role": "assistant", "content": [image(uri(b"hello"))]}, TURN]},
        400,
        "not an image",
    ),
    "response of nothing": (RESPOND, {}, 400, "input is missing"),
    "response of a number": (RESPOND, {"input": 7}, 400, "must be text or a list"),
    "response of much": (RESPOND, {"input": "a" * 2_000_000}, 400, "at most 100000 characters"),
    "response of many": (RESPOND, {"input": [TURN] * 201}, 400, "at most 200 items"),
    "long response": (RESPOND, {"input": "a b " * 999}, 400, "tokens"),
    "response with a bomb": (RESPOND, {"input": [asked(uri(bomb()))]}, 400, "over the limit"),
    "response with a URL": (RESPOND, {"input": [asked("file:///etc/passwd")]}, 400, "no image"),
    "response with a file": (RESPOND, {"input": [FILE]}, 400, "file_id"),
    "image of another answer": (
        RESPOND,
        {"input": [{"type": "image_generation_call", "result": "@"}, TURN]},
        400,
        "base64",
    ),
    "id of another answer": (RESPOND, {"input": [{"id": "msg_1"}, TURN]}, 400, "stored item"),
    "answers that are kept": (RESPOND, {"input": "a", "previous_response_id": "r"}, 400, "stored"),
    "nested tools": (RESPOND, b'{"input":"a","tools":' + b"[" * 90_000, 400, ""),
    "other tools": (RESPOND, {"input": "a", "tools": [{"type": "shell"}]}, 400, "only tool"),
}
FORM_TABLE: dict[str, tuple[str, tuple[tuple[str, str, bytes], ...], int, str]] = {
    "no file": (EDIT, (A_PROMPT,), 400, "image is missing"),
    "no prompt": (EDIT, (A_IMAGE,), 400, "prompt"),
    "text for a file": (EDIT, (A_PROMPT, ("image", "", b"hello")), 400, "must be a file"),
    "mask": (EDIT, (A_PROMPT, A_IMAGE, ("mask", "m.png", png())), 400, "mask is not supported"),
    "unknown field": (EDIT, (A_PROMPT, A_IMAGE, ("sede", "", b"1")), 400, "unknown"),
    "field twice": (EDIT, (A_PROMPT, A_PROMPT, A_IMAGE), 400, "given twice"),
    "n as a word": (EDIT, (A_PROMPT, A_IMAGE, ("n", "", b"two")), 400, "whole number"),
    "many files": (EDIT, (A_PROMPT, *[A_IMAGE] * 9), 400, "oo many files"),
    "one file too many": (EDIT, (A_PROMPT, *[A_IMAGE] * 5), 400, "at most 4"),
    "truncated file": (EDIT, (A_PROMPT, ("image", "a.png", png(200)[:-30])), 400, "truncated"),
    "bomb": (EDIT, (A_PROMPT, ("image", "a.png", bomb())), 400, "over the limit"),
    "name as a path": (VARY, (("image", "../../etc/passwd", b"root"),), 400, "not an image"),
    "two for a variation": (VARY, (A_IMAGE, A_IMAGE), 400, "one image"),
    "prompt of a variation": (VARY, (A_IMAGE, A_PROMPT), 400, "unknown parameter 'prompt'"),
}


def check(answer: tuple[int, dict[str, Any], dict[str, str]], status: int, message: str) -> None:
    got, body, _ = answer
    assert got == status, body
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert message in body["error"]["message"]
    assert body["error"]["message"].isprintable()
    assert len(body["error"]["message"]) < 500


@pytest.mark.parametrize("name", JSON_TABLE)
def test_bad_json_requests(server: Any, name: str) -> None:
    path, body, status, message = JSON_TABLE[name]
    check(send(server.port, path, body, JSON), status, message)


@pytest.mark.parametrize("name", FORM_TABLE)
def test_bad_forms(server: Any, name: str) -> None:
    path, parts, status, message = FORM_TABLE[name]
    check(send(server.port, path, *form(*parts)), status, message)


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "message"),
    [
        ("POST", GENERATE, b'{"prompt":"a"}', {"Content-Type": "text/plain"}, 400, ""),
        ("POST", EDIT, b"{}", JSON, 400, "multipart/form-data"),
        ("POST", EDIT, b"x", {"Content-Type": "multipart/form-data"}, 400, "cannot be read"),
        ("GET", GENERATE, None, {}, 405, ""),
        ("POST", "/v1/audio/speech", b"{}", JSON, 404, "no such path"),
        ("GET", "/v1/drawn/../../etc/passwd", None, {}, 404, "no such"),
        ("GET", "/v1/drawn/..%2f..%2fetc%2fpasswd", None, {}, 404, "no such"),
        ("GET", "/v1/models/..%2f..%2fetc", None, {}, 404, "not served here"),
        ("POST", GENERATE, b"a" * 33_000_000, JSON, 413, "over 32000000 bytes"),
    ],
)
def test_bad_paths_methods_and_sizes(
    server: Any, method: str, path: str, body: Any, headers: Any, status: int, message: str
) -> None:
    try:
        check(send(server.port, path, body, headers, method), status, message)
    except (BrokenPipeError, ConnectionResetError):
        assert status == 413  # refused before it was sent completely


def test_a_body_that_never_arrives_times_out(server: Any) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
        head = f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        slow.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        start = time.monotonic()
        answer = b"".join(iter(lambda: slow.recv(4096), b""))  # until the connection closes
        assert time.monotonic() - start < 20
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"did not arrive within 2 seconds" in answer


def test_noise_on_the_socket_is_refused(server: Any) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as noisy:
        noisy.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        assert noisy.recv(4096).startswith(b"HTTP/1.1 400")


def test_afterwards_the_server_still_works(server: Any) -> None:
    good = {"prompt": "a red car", "num_inference_steps": 2}
    status, body, _ = send(server.port, GENERATE, good, JSON)
    assert status == 200
    assert len(body["data"]) == 1
    assert server.process.poll() is None
