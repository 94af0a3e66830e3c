"""The server process: loads models, opens the socket, handles signals."""

import importlib.util
import os
import signal
import socket
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType

import torch
import uvicorn
from fastapi import FastAPI

from blip3o.core.device import resolve_device
from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.generate.exact import steady_kernels
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.serve.config import ServeConfig
from blip3o.serve.http.app import build_app
from blip3o.serve.http.connections import (
    BACKLOG,
    Connections,
    limit_log,
    protocol_of,
    raise_file_limit,
)
from blip3o.serve.http.hosts import HostNames
from blip3o.serve.http.service import Service, name_for_clients

_LOCAL = ("127.0.0.1", "::1", "localhost")


def serve(
    config: ServeConfig,
    model: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    overrides: Sequence[str] = (),
    quantize: str | None = None,
    offload: str = "none",
) -> None:
    """Serves a model until SIGTERM or SIGINT, then finishes accepted requests and returns.

    Args:
        config: limits, address and sizes.
        model: model to load; this and the other arguments are those of
            `Blip3oPipeline.from_pretrained`.
        device: "auto" or a torch device.
        dtype: "auto", "fp32", "bf16" or "fp16".
        revision: branch, tag or commit, for a hub id.
        overrides: changes of the model's config, as "path.to.field=value".
        quantize: "int8" or "int4" for the backbone's matrices.
        offload: "none", "model" or "sequential".

    Raises:
        UsageError: if the model cannot be loaded or the address is unavailable.
    """
    steady_kernels()
    keys = api_keys(config)
    if config.host not in _LOCAL and not keys:
        say(f"blip3o: warning: {config.host} is open to other machines, and no --api-key is set")
    listener = _bind(config)
    devices = _devices(device, config.workers)
    num_threads = max(1, torch.get_num_threads() // len(devices))
    _use_one_thread(devices)
    load = partial(Blip3oPipeline.from_pretrained, model, dtype=dtype, revision=revision)
    pipes = [
        load(device=one, overrides=overrides, quantize=quantize, offload=offload) for one in devices
    ]
    service = Service(pipes, name_for_clients(model), config, num_threads)
    service.start()
    _use_one_thread(devices)
    names = HostNames(config.host, config.allowed_host, has_keys=bool(keys))
    app = build_app(service, keys, names)
    end_page = None if config.no_page else _add_page(app, service)
    most = raise_file_limit(config.max_connections)
    table = Connections(most, config.header_timeout_s, config.read_timeout_s)
    limit_log()
    settings = uvicorn.Config(
        app,
        http=protocol_of(table),
        ws="none",
        backlog=BACKLOG,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=max(1, round(config.drain_timeout_s)),
        server_header=False,
    )
    server = _Server(settings, service, end_page)
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn handles signals while it runs, and raises them again when it ends. Our handler
        # makes a requested stop end without an error, and also covers the time before uvicorn runs.
        signal.signal(number, server.handle_exit)
    try:
        _listen(listener, config)  # before the log line, because clients may connect immediately
        host, port = listener.getsockname()[:2]
        say(f"blip3o: serving {service.name} at http://{host}:{port}")
        server.run(sockets=[listener])
    finally:
        service.stop()


def api_keys(config: ServeConfig) -> list[str]:
    """Returns the valid API keys; an empty list means open access.

    White space around a key is dropped, as it is in requests.

    Args:
        config: contains keys; further ones come from the environment (BLIP3O_API_KEYS).

    Raises:
        UsageError: for an empty key, which no client could send.
    """
    keys = [key.strip() for key in config.api_key]
    if not all(keys):
        raise UsageError("--api-key is empty; give a key, or leave the option out for open access")
    others = os.environ.get("BLIP3O_API_KEYS", "").split(",")
    return [*keys, *(key.strip() for key in others if key.strip())]


def _use_one_thread(devices: list[str]) -> None:
    """Leaves the CPU cores to the engines if the models run on the CPU.

    OpenMP keeps a thread pool for every computing thread. If the pools together have more threads
    than the machine has cores, they sleep after each matrix product instead of waiting actively
    for the next one, and images take two to three times as long. So this thread computes with one
    core, also while it loads models. Call it before and after the engines start: the number
    applies to this thread and to later threads that set none, until an engine sets its own.
    """
    if "cpu" in devices:
        torch.set_num_threads(1)


def _add_page(app: FastAPI, service: Service) -> Callable[[], None] | None:
    """Adds the page if Gradio is installed; returns a function that ends its connections."""
    if importlib.util.find_spec("gradio") is None:
        say("blip3o: no web page: pip install 'blip3o[page]'")
        return None
    from blip3o.serve.page.mount import add_page

    return add_page(app, service)


class _Server(uvicorn.Server):
    """Refuses new requests from the first signal to stop."""

    def __init__(
        self, config: uvicorn.Config, service: Service, end_page: Callable[[], None] | None
    ) -> None:
        super().__init__(config)
        self._service = service
        self._end_page = end_page

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._end_page is not None:  # an open page keeps its connection until then
            self._end_page()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.queue.close()
        super().handle_exit(sig, frame)


def _bind(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen on {config.host}:{config.port}: {error}") from error
    return listener


def _listen(listener: socket.socket, config: ServeConfig) -> None:
    try:
        listener.listen(2048)
    except OSError as error:  # another server that started at the same time was faster
        listener.close()
        raise UsageError(f"cannot listen on {config.host}:{config.port}: {error}") from error


def _devices(name: str, workers: int) -> list[str]:
    """Returns the device of each engine: one CUDA device each, or the same device for all."""
    device = resolve_device(name)
    if device.type != "cuda" or workers == 1:
        return [str(device)] * workers
    if device.index is not None or workers > torch.cuda.device_count():
        raise UsageError(
            f"--workers {workers} requires --device cuda and {workers} CUDA devices; there are "
            f"{torch.cuda.device_count()}"
        )
    return [f"cuda:{number}" for number in range(workers)]
