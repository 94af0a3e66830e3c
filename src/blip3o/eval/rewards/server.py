"""The process of the reward server: opens the socket, handles signals."""

import signal
import socket
from collections.abc import Sequence
from types import FrameType

import uvicorn

from blip3o.core.errors import UsageError
from blip3o.core.log import say
from blip3o.eval.rewards.app import RewardService, create_app
from blip3o.eval.rewards.config import RewardServerConfig

_LOCAL = ("127.0.0.1", "::1", "localhost")
_BACKLOG = 1024
_KEEP_ALIVE_S = 75


def serve_rewards(
    benchmark: str, overrides: Sequence[str] = (), config: RewardServerConfig | None = None
) -> None:
    """Serves the rewards of a benchmark until SIGTERM or SIGINT, then finishes accepted requests.

    Args:
        benchmark: an entry of `REWARDS`.
        overrides: `path=value` changes of the benchmark's settings.
        config: address and limits; None for the defaults.

    Raises:
        UsageError: for an unknown benchmark or setting, if the address is not free, or if the
            scorer cannot be loaded.
    """
    config = config or RewardServerConfig()
    app = create_app(benchmark, overrides, config, lambda: server.end())
    service: RewardService = app.state.service
    if config.host not in _LOCAL:
        say(f"blip3o: warning: {config.host} is open to other machines, and needs no key")
    settings = uvicorn.Config(
        app,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(config.drain_timeout_s)),
    )
    server = _Server(settings, service)
    listener = _listening(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn handles signals while it runs, and raises them again when it ends. Our handler
        # makes a requested stop end without an error, and also covers the time before uvicorn runs.
        signal.signal(number, server.handle_exit)
    host, port = listener.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    say(f"blip3o: serving rewards of {benchmark} at http://{address}:{port}")
    server.run(sockets=[listener])
    if service.dispatcher.trouble is not None:
        raise UsageError(service.dispatcher.trouble)


class _Server(uvicorn.Server):
    """Refuses new requests from the first signal to stop."""

    def __init__(self, config: uvicorn.Config, service: RewardService) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.queue.close("the server is shutting down")
        super().handle_exit(sig, frame)

    def end(self) -> None:
        """Ends the server from another thread."""
        self.should_exit = True


def _listening(config: RewardServerConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen on {config.host}:{config.port}: {error}") from error
    return listener
