"""Runs the server as a process: models, sockets, signals."""

import importlib.util
import os
import signal
import socket
from types import FrameType
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI

from blip3o.core.device import resolve_device
from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.serve.config import ServeConfig
from blip3o.serve.exact import steady_kernels
from blip3o.serve.http.app import build_app
from blip3o.serve.http.connections import (
    BACKLOG,
    Connections,
    limit_log,
    protocol_of,
    raise_file_limit,
)
from blip3o.serve.http.hosts import HostNames
from blip3o.serve.http.service import Service

_LOCAL = ("127.0.0.1", "::1", "localhost")


def serve(config: ServeConfig, model: str, **loading: Any) -> None:  # noqa: ANN401
    """Serves a model until SIGTERM or SIGINT, then finishes what is accepted and returns.

    Args:
        config: limits, address and sizes.
        model: what `Blip3oPipeline.from_pretrained` loads.
        loading: its other arguments.

    Raises:
        UsageError: if the model or the address is not to be had.
    """
    steady_kernels()
    keys = api_keys(config)
    if config.host not in _LOCAL and not keys:
        say(f"blip3o: warning: {config.host} can be reached by others, and no --api-key is set")
    listener = _bind(config)
    devices = _devices(loading.pop("device", "auto"), config.workers)
    num_threads = max(1, torch.get_num_threads() // len(devices))
    _compute_alone(devices)
    pipes = [Blip3oPipeline.from_pretrained(model, device=name, **loading) for name in devices]
    service = Service(pipes, os.path.basename(model.rstrip("/")) or model, config, num_threads)
    service.start()
    _compute_alone(devices)
    names = HostNames(config.host, config.allowed_host, has_keys=bool(keys))
    app = build_app(service, keys, names)
    if not config.no_page:
        _add_page(app, service)
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
    server = _Server(settings, service)
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn takes signals while it runs and raises them again when it is done: to stop when
        # told to is no failure, and a signal that comes before it runs counts too.
        signal.signal(number, server.handle_exit)
    try:
        _listen(listener, config)  # before it is said that we serve: clients may come at once
        host, port = listener.getsockname()[:2]
        say(f"blip3o: serving {service.name} at http://{host}:{port}")
        server.run(sockets=[listener])
    finally:
        service.stop()


def api_keys(config: ServeConfig) -> list[str]:
    """Returns the keys of which clients must send one; none lets everybody in.

    White space around a key is dropped, as it is where clients send it.

    Args:
        config: holds some; others are in the environment.

    Raises:
        UsageError: for an empty key, which nobody could send.
    """
    keys = [key.strip() for key in config.api_key]
    if not all(keys):
        raise UsageError("--api-key is empty; leave it out to let everybody in")
    others = os.environ.get("BLIP3O_API_KEYS", "").split(",")
    return [*keys, *(key.strip() for key in others if key.strip())]


def _compute_alone(devices: list[str]) -> None:
    """Leaves the cores to the engines, where they are what models run on.

    OpenMP keeps a pool of threads for every thread that computes. If the pools have more threads
    than the machine has cores, they sleep after each product instead of waiting for the next, and
    images take two to three times as long; so models are loaded by one thread, too. The number
    holds for this thread and for those that begin later and set none, until an engine sets its
    own: so before and after the engines start.
    """
    if "cpu" in devices:
        torch.set_num_threads(1)


def _add_page(app: FastAPI, service: Service) -> None:
    """Adds the page, where what it needs is installed."""
    if importlib.util.find_spec("gradio") is None:
        say("blip3o: no web page: pip install 'blip3o[page]'")
        return
    from blip3o.serve.page.mount import add_page

    add_page(app, service)


class _Server(uvicorn.Server):
    """Refuses new work from the moment it is told to stop."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # An open page holds a connection for as long as it is told that the server lives.
        getattr(self.config.app.state, "end_page", lambda: None)()  # type: ignore[union-attr]
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
    except OSError as error:  # another server was started at the same time, and is ready first
        listener.close()
        raise UsageError(f"cannot listen on {config.host}:{config.port}: {error}") from error


def _devices(name: str, workers: int) -> list[str]:
    """Returns the device of each engine: CUDA devices in turn, or the same one again and again."""
    device = resolve_device(name)
    if device.type != "cuda" or workers == 1:
        return [str(device)] * workers
    if device.index is not None or workers > torch.cuda.device_count():
        raise UsageError(
            f"{workers} workers need --device cuda and as many devices; there are "
            f"{torch.cuda.device_count()}"
        )
    return [f"cuda:{number}" for number in range(workers)]
