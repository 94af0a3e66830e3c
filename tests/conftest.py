"""One thread, no network, no traces in the home folder: set before anything heavy is imported."""

import atexit
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HOME = tempfile.mkdtemp(prefix="blip3o-home-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ.update(
    HOME=_HOME,
    HF_HOME=f"{_HOME}/huggingface",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    MPLBACKEND="Agg",
    # Kept between runs: matplotlib takes seconds to list the fonts of a new home.
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
    """Makes every connection that leaves this machine fail, and name itself."""

    def guard(method: str) -> Any:
        plain = getattr(socket.socket, method)

        def guarded(self: socket.socket, *arguments: Any) -> Any:
            address = arguments[-1]
            if self.family != socket.AF_UNIX and address[0] not in _LOOPBACK:
                raise RuntimeError(f"a test may not use the network: {method} to {address}")
            return plain(self, *arguments)

        return guarded

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        if host is not None and host not in _LOOPBACK:
            raise RuntimeError(f"a test may not use the network: lookup of {host}")
        return plain_resolve(host, *arguments, **options)

    plain_resolve = socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        for method in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, method, guard(method))
        patch.setattr(socket, "getaddrinfo", resolve)
        yield
