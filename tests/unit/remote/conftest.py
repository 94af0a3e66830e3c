"""A real HTTP server on this machine that answers as its script says."""

import base64
import contextlib
import dataclasses
import http.server
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import pytest

from blip3o.remote.chat import ChatRequest
from blip3o.remote.http import ServerSettings


@dataclasses.dataclass
class Call:
    """A request that arrived: its body, its headers, and how often the same prompt came before."""

    body: dict[str, Any]
    headers: Mapping[str, str]
    earlier: int
    at: float

    @property
    def prompt(self) -> str:
        if "prompt" in self.body:  # of an image
            return self.body["prompt"]
        content = self.body["messages"][-1]["content"]
        return content if isinstance(content, str) else json.dumps(content)


@dataclasses.dataclass
class Reply:
    """What the server does with a request."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    is_cut: bool = False
    wait_s: float = 0.0


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mutex = threading.Lock()
        self.calls: list[Call] = []
        self.answered: Counter[str] = Counter()  # prompts whose answer was sent completely
        self.most_at_once = 0
        self.now = 0
        self.reply: Callable[[Call], Reply] = lambda call: self.text(f"answer to {call.prompt}")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @staticmethod
    def text(content: object = "yes", finish: str = "stop", **reply: Any) -> Reply:
        """Returns a chat completion; `message`, `choice` and `whole` add fields of its parts."""
        message = {"role": "assistant", "content": content, **reply.pop("message", {})}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        body = {
            "model": "judge-1-0613",
            "system_fingerprint": "fp_1",
            "choices": [choice | reply.pop("choice", {})],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10},
        }
        return Reply(json.dumps(body | reply.pop("whole", {})).encode(), **reply)

    @staticmethod
    def image(file: bytes, whole: Mapping[str, Any] | None = None, **reply: Any) -> Reply:
        """Returns an answer with a file as its only image; `whole` adds fields of the body."""
        data = [{"b64_json": base64.b64encode(file).decode()}]
        return Reply(json.dumps({"created": 1, "data": data, **(whole or {})}).encode(), **reply)

    @staticmethod
    def error(status: int, message: str = "no", code: str = "", **headers: str) -> Reply:
        body = json.dumps({"error": {"message": message, "code": code}}).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return Reply(body, status=status, headers=named)

    @staticmethod
    def raw(body: bytes, **reply: Any) -> Reply:
        return Reply(body, **reply)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        server = cast("Server", self.server)
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        call = Call(body, {k.lower(): v for k, v in self.headers.items()}, 0, time.monotonic())
        with server.mutex:
            call.earlier = sum(one.prompt == call.prompt for one in server.calls)
            server.calls.append(call)
            server.now += 1
            server.most_at_once = max(server.most_at_once, server.now)
        reply = server.reply(call)
        time.sleep(reply.wait_s)
        try:
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(reply.body)))
            self.end_headers()
            if reply.is_cut:
                self.wfile.write(reply.body[: len(reply.body) // 2])
                self.close_connection = True
            else:
                self.wfile.write(reply.body)
                with server.mutex:
                    server.answered[call.prompt] += 1
        except OSError:  # the client is gone
            self.close_connection = True
        finally:
            with server.mutex:
                server.now -= 1

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client was killed
            super().handle()


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
    """Settings of the server with short pauses."""
    return ServerSettings(
        model="judge", url=server.url, key_variable="", pause_s=0.01, retries=2, timeout_s=5.0
    )


@pytest.fixture
def questions() -> Callable[[int], list[ChatRequest]]:
    """Returns a function that makes requests "question 0", "question 1", ..."""
    return lambda count: [ChatRequest(parts=(f"question {k}",)) for k in range(count)]
