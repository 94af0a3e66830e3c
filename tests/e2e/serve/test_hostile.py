"""Hostile requests: the server refuses them and answers others on time."""

import base64
import http.client
import io
import json
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

GENERATE, EDIT, VARY = (f"/v1/images/{name}" for name in ("generations", "edits", "variations"))
CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
QUICK = {"prompt": "a red car", "num_inference_steps": 1}


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def line(width: int, height: int) -> bytes:
    """Returns a complete gray PNG with 1 bit per pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(b"\0" * (1 + -(-width // 8))) for _ in range(height))
    body = chunk(b"IDAT", rows + packer.flush())
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


def scans() -> bytes:
    """Returns a progressive JPEG with two thousand extra scans."""
    data = encoded(Image.new("RGB", (64, 64), "red"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 2000 + b"\xff\xd9"


def send(
    port: int,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    method: str = "POST",
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        body = json.dumps(body).encode() if isinstance(body, dict) else body
        connection.request(method, path, body, headers or JSON)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text[:1] in {b"{", b"["} else text
    finally:
        connection.close()


def ask(url: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what?"}]
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}


def uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def form(data: bytes, name: str = "image", **fields: str) -> tuple[bytes, dict[str, str]]:
    body = b""
    for key, value in fields.items():
        body += f'--x\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n\r\n'
    body += head.encode() + data + b"\r\n--x--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=x"}


def peak_kilobytes(server: Any) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+)", status)
    assert found is not None
    return int(found[1])


DATA = encoded(Image.new("RGB", (16, 16), "red"))
TEXT = base64.b64encode(DATA).decode()


@pytest.mark.parametrize("size", [(64_000_000, 1), (1, 1_500_000)])
def test_an_extremely_thin_image_takes_little_memory_and_time(
    server: Any, size: tuple[int, int]
) -> None:
    data = line(*size)
    assert send(server.port, GENERATE, QUICK)[0] == 200
    before, start = peak_kilobytes(server), time.monotonic()
    for status, answer in (
        send(server.port, CHAT, ask(uri(data))),
        send(server.port, EDIT, *form(data, prompt="make it blue")),
    ):
        assert status == 400
        assert "100000 pixels a side" in answer["error"]["message"]
    assert time.monotonic() - start < 10
    assert peak_kilobytes(server) - before < 50_000


def test_a_panorama_is_answered(server: Any) -> None:
    data = encoded(Image.new("L", (20_000, 500), 90))
    assert send(server.port, VARY, *form(data))[0] == 200
    assert send(server.port, CHAT, ask(uri(data)))[0] == 200


def test_a_jpeg_of_thousands_of_scans_is_refused(server: Any) -> None:
    start = time.monotonic()
    status, answer = send(server.port, VARY, *form(scans()))
    assert status == 400
    assert "scans" in answer["error"]["message"]
    assert time.monotonic() - start < 10


def test_clients_that_disconnect_do_not_delay_others(server: Any) -> None:
    data = encoded(Image.new("L", (8000, 8000)))
    body, headers = form(data)
    assert send(server.port, GENERATE, QUICK)[0] == 200
    start = time.monotonic()
    for _ in range(60):  # in total half a minute of decoding
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as rude:
            head = f"POST {VARY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            rude.sendall(head.encode() + b"\r\n" + body)
    assert send(server.port, GENERATE, QUICK)[0] == 200
    assert send(server.port, VARY, *form(DATA))[0] == 200  # it waits for none of the others
    assert time.monotonic() - start < 8


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64," + "\n".join(TEXT[k : k + 64] for k in range(0, len(TEXT), 64)),
        "DATA:;BASE64," + base64.urlsafe_b64encode(DATA).decode().rstrip("="),
        f"data:image/jpeg;charset=utf-8;name=a.png;base64,{TEXT}",
        f"data:application/octet-stream;base64,{quote(TEXT, safe='')}",
        f"data:image/png,{quote(DATA, safe='')}",
    ],
)
def test_data_uris_in_the_forms_that_clients_send(server: Any, url: str) -> None:
    assert send(server.port, CHAT, ask(url))[0] == 200


def test_dns_rebinding_is_refused(server: Any) -> None:
    foreign = {**JSON, "Host": f"evil.example:{server.port}"}
    for method, path in (
        ("GET", "/"),
        ("GET", "/v1/models"),
        ("GET", "/config"),
        ("POST", GENERATE),
    ):
        body = QUICK if method == "POST" else None
        status, answer = send(server.port, path, body, foreign, method)
        assert status == 403
        assert answer["error"]["code"] == "host_not_allowed"
    asked = {**QUICK, "response_format": "url"}
    status, answer = send(
        server.port, GENERATE, asked, {**JSON, "Host": f"localhost:{server.port}"}
    )
    assert status == 200
    assert answer["data"][0]["url"].startswith(f"http://localhost:{server.port}/v1/")


_TIGHT = """
import resource
import blip3o.serve.http.server as server
from blip3o.cli import main
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
listen = server._listen
def tightened(*given):
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    listen(*given)
server._listen = tightened
raise SystemExit(main())
"""


@pytest.fixture(scope="module")
def tight(launch: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server that may open few files and write only short ones."""
    pytest.importorskip("gradio")
    words = ("--max-upload-bytes", "1000000", "--max-queue-pixels", "3000000")
    running = launch(*words, code=_TIGHT, TMPDIR=str(tmp_path_factory.mktemp("files")))
    yield running
    assert running.stop() == 0


def test_stalled_connections_do_not_block_new_ones(tight: Any) -> None:
    with ExitStack() as stack:
        for _ in range(400):
            held = stack.enter_context(socket.create_connection(("127.0.0.1", tight.port), 30))
            held.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-")
        begin = time.monotonic()
        for _ in range(5):
            assert send(tight.port, "/health", None, {}, "GET")[0] == 200
        assert time.monotonic() - begin < 10
    assert len(tight.lines) < 40


def test_a_full_disk_is_reported(tight: Any) -> None:
    data = encoded(Image.effect_noise((1300, 1300), 100))
    assert len(data) > 1_000_000
    assert send(tight.port, VARY, *form(data))[0] == 200  # forms do not use the disk
    status, answer = send(tight.port, "/gradio_api/upload", *form(b"x" * 600_000, "files"))
    assert status == 507
    assert "no room" in answer["error"]["message"]
    assert send(tight.port, "/gradio_api/upload", *form(DATA, "files"))[0] == 200


def test_uploads_have_a_total_limit(tight: Any) -> None:
    paths = []
    for number in range(4):
        body = form(bytes([number]) * 390_000, "files")
        status, answer = send(tight.port, "/gradio_api/upload", *body)
        assert status == 200
        paths += [Path(one) for one in answer]
        time.sleep(0.05)
    assert [path.exists() for path in paths] == [False, False, True, True]
    assert send(tight.port, "/gradio_api/upload", *form(b"x" * 1_100_000, "files"))[0] == 507


def test_many_concurrent_large_images_are_refused_with_429(tight: Any) -> None:
    body, headers = form(encoded(Image.new("L", (1500, 1500))))
    seen: list[int] = []

    def run() -> None:
        seen.append(send(tight.port, VARY, body, headers)[0])

    threads = [threading.Thread(target=run) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert set(seen) <= {200, 429}
    assert 200 in seen
    assert send(tight.port, VARY, body, headers)[0] == 200
