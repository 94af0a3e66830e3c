"""A tiny whole model, as a pipeline and as a folder; a real HTTP server that follows a script."""

import base64
import contextlib
import dataclasses
import http.server
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.models.unified import SamplingConfig, UnifiedModelConfig
from blip3o.text.chat import ChatConfig
from blip3o.text.tokenizer import Tokenizer, train_tokenizer
from blip3o.weights.folder import save_model

_TEXTS = (
    "draw: a red cat",
    "edit: make it blue",
    "user\n",
    "assistant\n",
    "What is this? a dog",
) * 3


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """A tokenizer that fits the tiny model's 320 token ids."""
    return train_tokenizer(_TEXTS, 300)


@pytest.fixture(scope="session")
def tiny_config(tiny_tokenizer: Tokenizer) -> UnifiedModelConfig:
    """The tiny model's config, with the tokenizer's placeholder and few steps."""
    tiny = UnifiedModelConfig.tiny()
    return dataclasses.replace(
        tiny,
        backbone=dataclasses.replace(
            tiny.backbone, image_token_id=tiny_tokenizer.image_pad_id, max_positions=96
        ),
        chat=ChatConfig(system=None, generate="draw: {caption}", edit="edit: {instruction}"),
        sampling=SamplingConfig(
            guidance_scale=2.0, num_inference_steps=3, num_decoder_steps=2, max_new_tokens=6
        ),
    )


@pytest.fixture(scope="session")
def tiny_pipe(tiny_config: UnifiedModelConfig, tiny_tokenizer: Tokenizer) -> Blip3oPipeline:
    """A pipeline in which every branch counts: fresh gates and last layers may be zero."""
    torch.manual_seed(0)
    model = tiny_config.build()
    for part in (model.get_submodule("generator.dit"), model.image_decoder):
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.2)
    for name, parameter in model.backbone.named_parameters():
        if parameter.ndim > 1:  # otherwise the tied embedding says the last token again and again
            nn.init.normal_(parameter, std=0.1 if "embed" in name else 0.5)
    return Blip3oPipeline(model, tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_folder(tiny_pipe: Blip3oPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline's model as a folder in float32; copy it before changing it."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_model(tiny_pipe.model, tiny_pipe.tokenizer, folder, torch.float32, "# Tiny\n")
    return folder


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


class Batches:
    """Files and batches of OpenAI's protocol; the server's `reply` answers the rows of a batch.

    `before` and `after` see each step ("upload", "create", "look", "list", "content"); a reply of
    theirs is sent instead. A batch ends with its `num_looks`-th look. `end` is how; an "expired",
    "cancelled" or "failed" one answers `num_answered` rows, and gives `errors`.
    """

    def __init__(self, server: "Server") -> None:
        self._server = server
        self.mutex = threading.Lock()
        self.files: dict[str, bytes] = {}
        self.all: list[dict[str, Any]] = []
        self.steps: Counter[str] = Counter()
        self.num_looks = 2
        self.num_answered = 0
        self.end = "completed"
        self.errors: list[dict[str, Any]] = []
        self.before: Callable[[str], Reply | None] = lambda step: None
        self.after: Callable[[str], Reply | None] = lambda step: None

    def answer(self, method: str, path: str, body: bytes) -> Reply:
        """Returns the answer to a request below /v1."""
        place, _, query = path.partition("?")
        parts = place.strip("/").split("/")[1:]
        step = {("POST", "files"): "upload", ("GET", "files"): "content"}.get((method, parts[0]))
        step = step or ("create" if method == "POST" else "look" if len(parts) > 1 else "list")
        with self.mutex:
            self.steps[step] += 1
            return self.before(step) or self._does(step, parts, query, body)

    def _does(self, step: str, parts: list[str], query: str, body: bytes) -> Reply:
        if step == "content":
            reply = Reply(self.files[parts[1]])
        elif step == "upload":
            assert b'name="purpose"' in body
            content = body.split(b'filename="requests.jsonl"')[1].split(b"\r\n\r\n", 1)[1]
            reply = self._json({"id": self._keep(content.rsplit(b"\r\n--", 1)[0])})
        elif step == "create":
            wanted = json.loads(body)
            assert wanted["endpoint"] == "/v1/chat/completions"
            assert wanted["completion_window"] == "24h"
            batch = {"id": f"batch_{len(self.all)}", "object": "batch", "looks": 0, "errors": None}
            self.all.append({**batch, **wanted, "status": "validating"})
            reply = self._json(self.all[-1])
        elif step == "look":
            batch = next(one for one in self.all if one["id"] == parts[1])
            batch["looks"] += 1
            if batch["looks"] == self.num_looks:
                self._finish(batch)
            reply = self._json(batch)
        else:  # two on a page, newest first
            newest = self.all[::-1]
            after = query.partition("after=")[2]
            first = next((n + 1 for n, one in enumerate(newest) if one["id"] == after), 0)
            page = newest[first : first + 2]
            reply = self._json({"data": page, "has_more": len(newest) > first + 2})
        return self.after(step) or reply

    def _finish(self, batch: dict[str, Any]) -> None:
        batch |= {"status": self.end, "errors": {"data": self.errors} if self.errors else None}
        rows = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        answered = rows if self.end == "completed" else rows[: self.num_answered]
        good, bad = b"", b""
        for row in reversed(answered):  # the order is not that of the requests
            assert row["method"] == "POST"
            assert row["url"] == "/v1/chat/completions"
            reply = self._server.reply(self._server.arrive(row["body"], {}))
            line = json.dumps({"custom_id": row["custom_id"], "error": None}).encode()[:-1]
            line += b', "response": {"status_code": %d, "body": ' % reply.status
            line += reply.body[: len(reply.body) // 2] if reply.is_cut else reply.body + b"}}"
            good, bad = (
                (good + line + b"\n", bad) if reply.status < 400 else (good, bad + line + b"\n")
            )
        if self.end == "expired":
            error = {"code": "batch_expired", "message": "not executed in time"}
            for row in rows[self.num_answered :]:
                line = {"custom_id": row["custom_id"], "response": None, "error": error}
                bad += json.dumps(line).encode() + b"\n"
        if good:
            batch["output_file_id"] = self._keep(good)
        if bad:
            batch["error_file_id"] = self._keep(bad)

    def _keep(self, content: bytes) -> str:
        self.files[f"file-{len(self.files)}"] = content
        return f"file-{len(self.files) - 1}"

    @staticmethod
    def _json(value: Any) -> Reply:
        return Reply(json.dumps(value).encode())


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mutex = threading.Lock()
        self.calls: list[Call] = []
        self.arrived: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()  # prompts whose answer was sent completely
        self.most_at_once = 0
        self.now = 0
        self.reply: Callable[[Call], Reply] = lambda call: self.text(f"answer to {call.prompt}")
        self.batches = Batches(self)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def arrive(self, body: dict[str, Any], headers: Mapping[str, str]) -> Call:
        """Notes a request, by itself or in a batch."""
        call = Call(body, headers, 0, time.monotonic())
        with self.mutex:
            call.earlier = self.arrived[call.prompt]
            self.arrived[call.prompt] += 1
            self.calls.append(call)
        return call

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
        data = self.rfile.read(int(self.headers["content-length"]))
        if self.path.startswith(("/v1/files", "/v1/batches")):
            self._send(server.batches.answer("POST", self.path, data))
            return
        call = server.arrive(json.loads(data), {k.lower(): v for k, v in self.headers.items()})
        with server.mutex:
            server.now += 1
            server.most_at_once = max(server.most_at_once, server.now)
        try:
            if self._send(server.reply(call)):
                with server.mutex:
                    server.answered[call.prompt] += 1
        finally:
            with server.mutex:
                server.now -= 1

    def do_GET(self) -> None:
        self._send(cast("Server", self.server).batches.answer("GET", self.path, b""))

    def _send(self, reply: Reply) -> bool:
        """Sends a reply; returns whether it was sent completely."""
        time.sleep(reply.wait_s)
        try:
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body[: len(reply.body) // 2] if reply.is_cut else reply.body)
            self.close_connection = reply.is_cut
        except OSError:  # the client is gone
            self.close_connection = True
        return not self.close_connection

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
