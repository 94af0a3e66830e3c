"""Limits every test to one thread, no network and a temporary home folder.

The environment is set before any heavy import.
"""

import atexit
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

_HOME = tempfile.mkdtemp(prefix="blip3o-home-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ.update(
    HOME=_HOME,
    HF_HOME=f"{_HOME}/huggingface",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    MPLBACKEND="Agg",
    # Kept between runs, because matplotlib needs seconds to list the fonts in a new home folder.
    MPLCONFIGDIR=str(Path(__file__).parent.parent / ".pytest_cache" / "matplotlib"),
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Makes every connection to another machine fail with a message that names it."""

    def guard(plain: Callable[..., object]) -> Callable[..., object]:
        def guarded(self: socket.socket, *arguments: object) -> object:
            address = arguments[-1]
            if isinstance(address, tuple) and address[0] not in _LOOPBACK:
                raise RuntimeError(f"a test may not use the network: {plain.__name__} to {address}")
            return plain(self, *arguments)

        return guarded

    def resolve(host: str | None, *arguments: object, **options: object) -> object:
        if host is not None and host not in _LOOPBACK:
            raise RuntimeError(f"a test may not use the network: lookup of {host}")
        return plain_resolve(host, *arguments, **options)

    plain_resolve: Callable[..., object] = socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        for method in (socket.socket.connect, socket.socket.connect_ex, socket.socket.sendto):
            patch.setattr(socket.socket, method.__name__, guard(method))
        patch.setattr(socket, "getaddrinfo", resolve)
        yield
