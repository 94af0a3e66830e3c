"""The client of the reward server, for training programs; it needs no extra packages."""

import json
import random
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, get_args

from PIL import Image

from blip3o.core.errors import UsageError, shown
from blip3o.eval.benchmark import Outcome
from blip3o.eval.rewards import Reward
from blip3o.imaging.encode import to_png
from blip3o.remote.http import retry_after_s

if TYPE_CHECKING:
    import httpx

_RETRIED = (429, 502, 503, 504)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 30.0


class RewardClient:
    """Sends images to a reward server and returns their rewards. Threads may share a client.

    A request is sent again after 429, 503 (also 502 and 504 of proxies) and after faults of the
    connection: a reward is a pure function of image and item, so this changes nothing.

    Args:
        url: address of the server, "http://127.0.0.1:8100".
        images_per_request: largest number of images that are sent together.
        timeout_s: longest time for one request.
        patience_s: longest time without any answer but "try again", after which a request fails.

    Raises:
        UsageError: for an address without http or https.
    """

    def __init__(
        self,
        url: str,
        *,
        images_per_request: int = 64,
        timeout_s: float = 600.0,
        patience_s: float = 1800.0,
    ) -> None:
        import httpx  # only programs that ask for rewards need it

        if not url.startswith(("http://", "https://")):
            raise UsageError(f"{shown(url)} is not the address of a server; write http://HOST:PORT")
        self._url = url.rstrip("/")
        self._images_per_request = max(1, images_per_request)
        self._patience_s = patience_s
        self._http = httpx.Client(
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0), pool=None),
            limits=httpx.Limits(max_connections=None),
        )

    def score(
        self, images: Sequence[Image.Image | bytes], items: Sequence[Mapping[str, Any]]
    ) -> list[Reward]:
        """Returns the reward of each image, in the order of the images.

        Args:
            images: images, or the bytes of image files. Images are sent as PNG, without loss.
            items: the benchmark's metadata of each image.

        Raises:
            ValueError: if the numbers of images and items differ.
            UsageError: if the server refuses the request, or does not answer.
        """
        if len(images) != len(items):
            raise ValueError(f"{len(images)} images, but {len(items)} items")
        rewards: list[Reward] = []
        for start in range(0, len(images), self._images_per_request):
            end = start + self._images_per_request
            files = [
                one if isinstance(one, bytes) else to_png(one, compress_level=1)
                for one in images[start:end]
            ]
            rewards += self._scored(files, items[start:end])
        return rewards

    def info(self) -> dict[str, Any]:
        """Returns judge, benchmark, settings, version and limits of the server.

        Raises:
            UsageError: if the server does not answer.
        """
        return self._answered("GET", "/v1/info")

    def health(self) -> dict[str, Any]:
        """Returns the state of the server; one that is not ready has one too.

        Raises:
            UsageError: if the server cannot be reached.
        """
        import httpx

        try:
            return self._http.get(f"{self._url}/health").json()
        except (httpx.HTTPError, ValueError) as error:
            raise UsageError(f"no reward server answers at {self._url}: {error}") from error

    def close(self) -> None:
        """Closes all connections."""
        self._http.close()

    def __enter__(self) -> "RewardClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _scored(self, files: Sequence[bytes], items: Sequence[Mapping[str, Any]]) -> list[Reward]:
        answer = self._answered(
            "POST",
            "/v1/rewards",
            data={"items": json.dumps([dict(item) for item in items])},
            files=[("images", (f"{n}", file)) for n, file in enumerate(files)],
        )
        wrong = f"{self._url} does not answer as a reward server of this version of blip3o"
        try:
            rewards = [Reward(**one) for one in answer["rewards"]]
        except (KeyError, TypeError) as error:
            raise UsageError(wrong) from error
        known = get_args(Outcome)
        if len(rewards) != len(files) or any(one.outcome not in known for one in rewards):
            raise UsageError(wrong)
        return rewards

    def _answered(self, method: str, path: str, **content: Any) -> dict[str, Any]:  # noqa: ANN401
        """Returns the answer to a request, which is sent until the patience ends."""
        import httpx

        end = time.monotonic() + self._patience_s
        pause = _FIRST_PAUSE_S
        while True:
            wait_s: float | None = None
            try:
                response = self._http.request(method, f"{self._url}{path}", **content)
            except httpx.TransportError as error:
                trouble = f"{type(error).__name__}: {error}"
            else:
                if response.status_code == 200:
                    return _json_of(response, self._url)
                trouble = _message_of(response)
                if response.status_code not in _RETRIED:
                    raise UsageError(f"the reward server at {self._url} refuses this: {trouble}")
                wait_s = retry_after_s(response.headers)
            if wait_s is None:
                wait_s, pause = pause, min(2 * pause, _LONGEST_PAUSE_S)
            # Clients that were refused together must not return together.
            wait_s *= random.uniform(1.0, 1.25)
            if time.monotonic() + wait_s > end:
                raise UsageError(
                    f"the reward server at {self._url} did not judge within {self._patience_s:g} "
                    f"seconds ({trouble}); see its log and /health"
                )
            time.sleep(wait_s)


def _json_of(response: "httpx.Response", url: str) -> dict[str, Any]:
    try:
        return response.json()
    except ValueError as error:
        raise UsageError(f"{url} does not answer with JSON, as a reward server does") from error


def _message_of(response: "httpx.Response") -> str:
    try:
        return f"{response.status_code}, {response.json()['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"
