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
            call.earlier = server.arrived[call.prompt]
            server.arrived[call.prompt] += 1
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
