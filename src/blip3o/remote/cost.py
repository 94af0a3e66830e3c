"""Prices, estimates and hard caps of requests to paid servers."""

import dataclasses
import fcntl
import io
import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from blip3o.core.errors import PreemptedError, UsageError, reason_of
from blip3o.core.files import write_atomic
from blip3o.remote.chat import Answer, ChatImage, ChatRequest

_PER_PRICE = 1_000_000
_BYTES_PER_TOKEN = 3
"""English has about 4 bytes per token, other languages have fewer."""
_PX_PER_TOKEN = 28
"""Side in pixels of the part of an image that is one token, as Qwen2.5-VL counts them."""
_USUAL_IMAGE_TOKENS = 1000
_TOKENS_PER_MESSAGE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prices:
    """Prices per million tokens, both in the same currency.

    Args:
        prompt: price of the tokens that the server reads.
        completion: price of the tokens that it writes.
    """

    prompt: float
    completion: float

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Returns the price of one answer."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / _PER_PRICE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """The size and the price of requests before they are sent.

    Args:
        num_requests: number of requests.
        num_images: number of images in all requests.
        prompt_tokens: tokens that the server reads, roughly.
        completion_tokens: most tokens that it writes.
        least_cost: price if the answers are empty; None without prices.
        most_cost: price if all answers have the full length; None without prices.
    """

    num_requests: int
    num_images: int
    prompt_tokens: int
    completion_tokens: int
    least_cost: float | None
    most_cost: float | None

    def __str__(self) -> str:
        """Returns the estimate as one line."""
        parts = [
            f"{self.num_requests:,} requests with {self.num_images:,} images",
            f"about {self.prompt_tokens:,} tokens to read",
            f"at most {self.completion_tokens:,} to write",
        ]
        if self.least_cost is not None and self.most_cost is not None:
            parts.append(f"cost about {self.least_cost:.4g} to {self.most_cost:.4g}")
        return ", ".join(parts)


def estimate(requests: Sequence[ChatRequest], prices: Prices | None = None) -> Estimate:
    """Returns the estimate of requests; the tokens of texts and images are rough."""
    read = sum(_prompt_tokens(request) for request in requests)
    written = sum(_most_completion_tokens(request) for request in requests)
    return Estimate(
        num_requests=len(requests),
        num_images=sum(isinstance(part, ChatImage) for one in requests for part in one.parts),
        prompt_tokens=read,
        completion_tokens=written,
        least_cost=None if prices is None else prices.cost(read, 0),
        most_cost=None if prices is None else prices.cost(read, written),
    )


def _prompt_tokens(request: ChatRequest) -> int:
    texts = [request.system, *(part for part in request.parts if isinstance(part, str))]
    num_bytes = sum(len(text.encode(errors="replace")) for text in texts)
    images = sum(_image_tokens(part) for part in request.parts if isinstance(part, ChatImage))
    return _TOKENS_PER_MESSAGE + math.ceil(num_bytes / _BYTES_PER_TOKEN) + images


def _image_tokens(image: ChatImage) -> int:
    try:
        with Image.open(io.BytesIO(image.data)) as opened:
            width, height = opened.size
    except (OSError, ValueError, Image.DecompressionBombError):  # the server refuses it, or not
        return _USUAL_IMAGE_TOKENS
    return math.ceil(width / _PX_PER_TOKEN) * math.ceil(height / _PX_PER_TOKEN)


def _most_completion_tokens(request: ChatRequest) -> int:
    for name in ("max_completion_tokens", "max_tokens"):
        given = request.extra.get(name)
        if isinstance(given, int):
            return given
    return request.max_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spent:
    """The sums of all processes that share a budget.

    Args:
        num_requests: requests that were sent, retries included.
        cost: money that was spent; requests in flight count with the most that they may cost.
    """

    num_requests: int = 0
    cost: float = 0.0


class Budget:
    """Counts requests and money in a file, and refuses requests beyond a cap.

    Processes with the same folder share the sums, at the same time and one after the other. A
    request is paid in advance with the most that it may cost, so the cap holds also for requests in
    flight. A killed process leaves such payments in the sum: the server may charge for them.

    Args:
        folder: folder of the file `spent.json`; it must exist.
        prices: prices; None counts requests only.
        max_cost: most money, in the currency of the prices; None for no cap.
        max_requests: most requests, retries included; None for no cap.

    Raises:
        UsageError: if there is a cap of money without prices.
    """

    def __init__(
        self,
        folder: Path,
        *,
        prices: Prices | None = None,
        max_cost: float | None = None,
        max_requests: int | None = None,
    ) -> None:
        if max_cost is not None and prices is None:
            raise UsageError("max_cost needs the prices of a million tokens; or use max_requests")
        self.prices = prices
        self._file = folder / "spent.json"
        self._lock_file = folder / ".spent.lock"
        self._max_cost = max_cost
        self._max_requests = max_requests
        self._mutex = threading.Lock()

    def spent(self) -> Spent:
        """Returns the sums so far.

        Raises:
            UsageError: if their file cannot be read.
        """
        try:
            values = json.loads(self._file.read_bytes())
            spent = Spent(num_requests=int(values["num_requests"]), cost=float(values["cost"]))
        except FileNotFoundError:
            return Spent()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"cannot read the money spent from {self._file}: repair it, or remove it to count "
                "from zero"
            ) from error
        return spent

    def reserve(self, request: ChatRequest) -> float | None:
        """Pays a request in advance.

        Returns:
            The money that is paid, to be passed to `settle` or `release`; None if a cap leaves no
            room for the request.

        Raises:
            UsageError: if the file of the sums cannot be read or written.
        """
        most = self._most(request)
        with self._locked():
            spent = self.spent()
            if self._max_requests is not None and spent.num_requests >= self._max_requests:
                return None
            if self._max_cost is not None and spent.cost + most > self._max_cost:
                return None
            self._write(spent.num_requests + 1, spent.cost + most)
        return most

    def settle(self, reserved: float, answer: Answer | None) -> None:
        """Replaces an advance payment by the price of the answer.

        Args:
            reserved: the payment.
            answer: the answer; None if the server charges nothing. An answer without a number of
                tokens costs the whole payment.
        """
        if self.prices is None:
            return
        cost = 0.0
        if answer is not None:
            is_counted = answer.prompt_tokens > 0
            price = self.prices.cost(answer.prompt_tokens, answer.completion_tokens)
            cost = price if is_counted else reserved
        if cost != reserved:
            self._change(0, cost - reserved)

    def release(self, reserved: float) -> None:
        """Returns the advance payment of a request that was not sent."""
        self._change(-1, -reserved)

    def reached(self, request: ChatRequest) -> PreemptedError:
        """Returns the error for a request that a cap leaves no room for."""
        spent = self.spent()
        if self._max_requests is not None and spent.num_requests >= self._max_requests:
            return PreemptedError(
                f"stopped at the cap: {spent.num_requests:,} of {self._max_requests:,} requests "
                f"are sent ({self._file}); all answers are kept: raise max_requests and repeat the "
                "command"
            )
        return PreemptedError(
            f"stopped at the cap: {spent.cost:.4g} of {self._max_cost:.4g} is spent "
            f"({self._file}), and the next request may cost {self._most(request):.4g}; all answers "
            "are kept: raise max_cost and repeat the command"
        )

    def _most(self, request: ChatRequest) -> float:
        return estimate([request], self.prices).most_cost or 0.0

    def _change(self, requests: int, cost: float) -> None:
        with self._locked():
            spent = self.spent()
            self._write(spent.num_requests + requests, spent.cost + cost)

    def _write(self, num_requests: int, cost: float) -> None:
        values: Mapping[str, float] = {
            "num_requests": num_requests,
            "cost": max(0.0, round(cost, 9)),
        }
        write_atomic(self._file, json.dumps(values) + "\n")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Excludes the other threads and processes, silently: they lock for each request."""
        with self._mutex:
            try:
                lock = self._lock_file.open("a")
            except OSError as error:
                raise UsageError(f"cannot write {self._lock_file}: {reason_of(error)}") from error
            with lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                except OSError as error:
                    raise UsageError(
                        f"cannot lock {self._lock_file}: {reason_of(error)}; choose a folder on "
                        "another disk, because a cap needs locks"
                    ) from error
                yield
