"""The client of image servers, against a real HTTP server that reads forms with another parser."""

import base64
import contextlib
import dataclasses
import http.server
import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import pytest
from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.remote.http import ServerSettings
from blip3o.remote.images import ImageClient, ImageRequest

multipart = pytest.importorskip("python_multipart")


@dataclasses.dataclass
class Call:
    """A request that arrived.

    Args:
        path: path of the endpoint.
        fields: fields of the JSON object or of the form, as texts.
        files: name of the field, name and content of each file of the form.
        headers: headers in lower case.
        earlier: how often the same prompt came before.
        at: time of the arrival.
    """

    path: str
    fields: Mapping[str, str]
    files: list[tuple[str, str, bytes]]
    headers: Mapping[str, str]
    earlier: int
    at: float


Reply = tuple[int, bytes, Mapping[str, str]]


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mutex = threading.Lock()
        self.calls: list[Call] = []
        self.reply: Callable[[Call], Reply] = drawn


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()

    def do_POST(self) -> None:
        server = cast("Server", self.server)
        data = self.rfile.read(int(self.headers["content-length"]))
        kind = self.headers["content-type"]
        fields, files = read_form(kind, data) if "multipart" in kind else (json.loads(data), [])
        fields = {name: str(value) for name, value in fields.items()}
        with server.mutex:
            earlier = sum(one.fields["prompt"] == fields["prompt"] for one in server.calls)
            headers = {name.lower(): value for name, value in self.headers.items()}
            call = Call(self.path, fields, files, headers, earlier, time.monotonic())
            server.calls.append(call)
        status, body, headers = server.reply(call)
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def read_form(kind: str, data: bytes) -> tuple[dict[str, str], list[tuple[str, str, bytes]]]:
    fields: dict[str, str] = {}
    files: list[tuple[str, str, bytes]] = []

    def on_file(file: Any) -> None:
        file.file_object.seek(0)
        content = file.file_object.read()
        files.append((file.field_name.decode(), file.file_name.decode(), content))

    multipart.parse_form(
        {"Content-Type": kind.encode(), "Content-Length": str(len(data)).encode()},
        io.BytesIO(data),
        lambda field: fields.update({field.field_name.decode(): field.value.decode()}),
        on_file,
    )
    return fields, files


def file_of(image: Image.Image, form: str = "PNG") -> bytes:
    data = io.BytesIO()
    image.save(data, form)
    return data.getvalue()


def answer(data: bytes) -> Reply:
    """Returns the reply with a file as its only image."""
    body = {"created": 1, "data": [{"b64_json": base64.b64encode(data).decode()}]}
    return 200, json.dumps(body).encode(), {}


def error(status: int, message: str = "no", code: str = "", **headers: str) -> Reply:
    body = {"error": {"message": message, "code": code}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, json.dumps(body).encode(), named


def drawn(call: Call) -> Reply:
    """Paints the color that the seed says."""
    return answer(file_of(Image.new("RGB", (8, 6), (int(call.fields["seed"]), 20, 30))))


def colors(images: list[Image.Image | str]) -> list[object]:
    return [one if isinstance(one, str) else one.getpixel((0, 0)) for one in images]


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def settings(server: Server) -> ServerSettings:
    return ServerSettings(
        model="painter",
        url=f"http://127.0.0.1:{server.server_port}/v1",
        key_variable="",
        pause_s=0.01,
        retries=2,
        timeout_s=30.0,
    )


@pytest.fixture
def client(settings: ServerSettings) -> ImageClient:
    return ImageClient(settings)


def asked(count: int, *images: bytes) -> list[ImageRequest]:
    return [ImageRequest(prompt=f"image {n}", seed=n, images=images) for n in range(count)]


def test_images_come_in_the_order_of_the_requests(server: Server, client: ImageClient) -> None:
    images = client.images(asked(20))
    assert colors(images) == [(n, 20, 30) for n in range(20)]
    assert {one.mode for one in images if isinstance(one, Image.Image)} == {"RGB"}
    call = next(one for one in server.calls if one.fields["prompt"] == "image 7")
    assert call.path == "/v1/images/generations"
    assert call.headers["content-type"] == "application/json"
    assert call.fields == {
        "model": "painter",
        "prompt": "image 7",
        "n": "1",
        "seed": "7",
        "response_format": "b64_json",
    }
    assert (client.model, client.size) == ("painter", None)


def test_a_size_and_a_key_are_sent(
    server: Server, settings: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAINTER_KEY", "secret-key-1234")
    keyed = dataclasses.replace(settings, key_variable="PAINTER_KEY")
    ImageClient(keyed, size="1024x1024").images(asked(1))
    assert server.calls[0].fields["size"] == "1024x1024"
    assert server.calls[0].headers["authorization"] == "Bearer secret-key-1234"


@pytest.mark.parametrize(("count", "name"), [(1, "image"), (3, "image[]")])
def test_edits_are_forms_that_another_parser_reads(
    server: Server, client: ImageClient, count: int, name: str
) -> None:
    sources = [file_of(Image.new("RGB", (5, n + 3), (n, 9, 9))) + b"\r\n--x" for n in range(count)]
    prompt = 'make it "blue"; \u00e9\u4e2d\r\n--and more'
    client.images([ImageRequest(prompt=prompt, seed=5, images=tuple(sources))])
    (call,) = server.calls
    assert call.path == "/v1/images/edits"
    assert call.fields["prompt"] == prompt
    assert (call.fields["seed"], call.fields["n"]) == ("5", "1")
    assert call.files == [(name, f"{n}.png", data) for n, data in enumerate(sources)]


def test_extra_fields_of_a_form(server: Server, settings: ServerSettings) -> None:
    extra = {"response_format": None, "is_free": True, "strength": 0.5, "kind": "oil"}
    ImageClient(settings, extra=extra).images(asked(1, file_of(Image.new("RGB", (4, 4)))))
    fields = server.calls[0].fields
    assert "response_format" not in fields
    assert {name: fields[name] for name in ("is_free", "strength", "kind", "seed")} == {
        "is_free": "true",
        "strength": "0.5",
        "kind": "oil",
        "seed": "0",
    }


def test_a_pause_that_the_server_asks_for_is_kept(server: Server, client: ImageClient) -> None:
    server.reply = lambda call: drawn(call) if call.earlier else error(429, retry_after="0.4")
    assert colors(client.images(asked(1))) == [(0, 20, 30)]
    first, second = server.calls
    assert second.at - first.at >= 0.4


def test_refusals_are_texts_and_not_errors(server: Server, client: ImageClient) -> None:
    def reply(call: Call) -> Reply:
        if call.fields["seed"] == "1":
            return error(400, "not this", "content_policy_violation")
        return drawn(call)

    server.reply = reply
    assert colors(client.images(asked(3))) == [(0, 20, 30), "not this", (2, 20, 30)]
    assert len(server.calls) == 3


PNG = file_of(Image.new("RGB", (64, 64), (1, 2, 3)))
BROKEN = {
    "cut": answer(PNG[: len(PNG) // 2]),
    "damaged": answer(PNG[:45] + bytes(20) + PNG[65:]),
    "no image": answer(b"<html>"),
    "empty": (200, b'{"data": []}', {}),
    "null": (200, b'{"data": [{"b64_json": null}]}', {}),
    "no base64": (200, b'{"data": [{"b64_json": "!"}]}', {}),
    "no JSON": (200, b"<html>", {}),
    "a list": (200, b"[]", {}),
    "error": error(500),
    "busy": error(503),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_faults_are_asked_again_and_named_in_the_end(
    server: Server, client: ImageClient, fault: str
) -> None:
    server.reply = lambda call: drawn(call) if call.earlier == 2 else BROKEN[fault]
    assert colors(client.images(asked(1))) == [(0, 20, 30)]
    assert len(server.calls) == 3
    server.reply = lambda call: BROKEN[fault]
    with pytest.raises(UsageError, match=r"gave no image of 'image 1': .*3 attempts") as caught:
        client.images([ImageRequest(prompt="image 1", seed=0)])
    assert "\n" not in str(caught.value)
    assert len(server.calls) == 6


def test_an_answer_in_another_format_becomes_rgb(server: Server, client: ImageClient) -> None:
    files = [
        file_of(Image.new("L", (4, 4), 7)),
        file_of(Image.new("RGBA", (4, 4), (7, 7, 7, 255))),
        file_of(Image.new("RGB", (4, 4), (7, 7, 7)), "WEBP"),
    ]
    server.reply = lambda call: answer(files[int(call.fields["seed"])])
    images = client.images(asked(3))
    assert [one.mode for one in images if isinstance(one, Image.Image)] == ["RGB"] * 3


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_request_that_can_never_succeed_ends_at_once(
    server: Server, client: ImageClient, status: int
) -> None:
    server.reply = lambda call: error(status, "never")
    with pytest.raises(UsageError, match=f"answers HTTP {status}: never"):
        client.images(asked(1))
    assert len(server.calls) == 1


def test_a_server_that_is_not_there_is_named(settings: ServerSettings) -> None:
    gone = dataclasses.replace(settings, url="http://127.0.0.1:9/v1", retries=1)
    with pytest.raises(UsageError, match=r"cannot reach http://127\.0\.0\.1:9/v1: .*check the url"):
        ImageClient(gone).images(asked(1))
