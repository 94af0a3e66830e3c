"""Prices, estimates and hard caps of requests to paid servers."""

import dataclasses
import fcntl
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from blip3o.core.errors import PreemptedError, UsageError, reason_of
from blip3o.core.files import write_atomic
from blip3o.remote.usage import HasUsage, Usage

_PER_PRICE = 1_000_000
_DIGITS = 9
"""Digits after the point of sums of money, so that ten times 0.1 is 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prices:
    """Prices of tokens and images, all in the same currency.

    Args:
        prompt: price of a million tokens that the server reads.
        completion: price of a million tokens that it writes.
        image: price of one image that it draws, besides its tokens.
    """

    prompt: float = 0.0
    completion: float = 0.0
    image: float = 0.0

    def cost(self, prompt_tokens: int, completion_tokens: int, num_drawn: int = 0) -> float:
        """Returns the price of these amounts."""
        tokens = prompt_tokens * self.prompt + completion_tokens * self.completion
        return tokens / _PER_PRICE + num_drawn * self.image

    def cost_of(self, used: Usage) -> float | None:
        """Returns the price of an answer; None if the server counted nothing to price."""
        if not used.prompt_tokens and not used.num_drawn * self.image:
            return None
        return self.cost(used.prompt_tokens, used.completion_tokens, used.num_drawn)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """The size and the price of requests before they are sent.

    Args:
        num_requests: number of requests.
        num_images: number of images in all requests.
        prompt_tokens: tokens that the server reads, roughly.
        completion_tokens: most tokens that it writes.
        num_drawn: number of images that it draws.
        least_cost: price if it writes no tokens; None without prices.
        most_cost: price if all answers have the full length; None without prices.
    """

    num_requests: int
    num_images: int
    prompt_tokens: int
    completion_tokens: int
    num_drawn: int
    least_cost: float | None
    most_cost: float | None

    def __str__(self) -> str:
        """Returns the estimate as one line."""
        parts = [
            f"{self.num_requests:,} requests with {self.num_images:,} images",
            f"about {self.prompt_tokens:,} tokens to read",
            f"at most {self.completion_tokens:,} to write",
        ]
        if self.num_drawn:
            parts.append(f"{self.num_drawn:,} images to draw")
        if self.least_cost is not None and self.most_cost is not None:
            parts.append(f"cost about {self.least_cost:.4g} to {self.most_cost:.4g}")
        return ", ".join(parts)


def estimate(requests: Sequence[HasUsage], prices: Prices | None = None) -> Estimate:
    """Returns the estimate of requests; the tokens of texts and images are rough."""
    most = [request.usage() for request in requests]
    read = sum(one.prompt_tokens for one in most)
    written = sum(one.completion_tokens for one in most)
    drawn = sum(one.num_drawn for one in most)
    return Estimate(
        num_requests=len(most),
        num_images=sum(one.num_images for one in most),
        prompt_tokens=read,
        completion_tokens=written,
        num_drawn=drawn,
        least_cost=None if prices is None else prices.cost(read, 0, drawn),
        most_cost=None if prices is None else prices.cost(read, written, drawn),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
    """The sums of one purpose, or of all.

    Args:
        num_requests: requests that were sent, retries included.
        cost: money that was spent; requests in flight count with the most that they may cost.
    """

    num_requests: int = 0
    cost: float = 0.0

    def plus(self, num_requests: int, cost: float) -> Self:
        """Returns the sums with a change."""
        return dataclasses.replace(
            self,
            num_requests=self.num_requests + num_requests,
            cost=max(0.0, round(self.cost + cost, _DIGITS)),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spent(Account):
    """The sums of all processes that share a budget.

    Args:
        num_requests: see `Account`.
        cost: see `Account`.
        accounts: the part of each account, by its name; requests without an account are in the
            sums only.
    """

    accounts: Mapping[str, Account] = dataclasses.field(default_factory=dict)

    def changed(self, num_requests: int, cost: float, account: str) -> "Spent":
        """Returns the sums with a change for an account; an empty name is none."""
        accounts = dict(self.accounts)
        if account:
            accounts[account] = accounts.get(account, Account()).plus(num_requests, cost)
        return dataclasses.replace(self.plus(num_requests, cost), accounts=accounts)


class Budget:
    """Counts requests and money in a file, and refuses requests beyond a cap.

    Requests to chat and image servers count alike. Each may name an account, whose sums are kept as
    well; the caps limit the sums of all.

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
            raise UsageError("max_cost needs the prices of tokens or images; or use max_requests")
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
            total = _account(values)
            accounts = values.get("accounts", {})  # older files hold none
            spent = Spent(
                num_requests=total.num_requests,
                cost=total.cost,
                accounts={name: _account(accounts[name]) for name in accounts},
            )
        except FileNotFoundError:
            return Spent()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"cannot read the money spent from {self._file}: repair it, or remove it to count "
                "from zero"
            ) from error
        return spent

    def reserve(self, request: HasUsage, account: str = "") -> float | None:
        """Pays a request in advance.

        Args:
            request: a request to a chat or image server.
            account: account that pays; empty for none.

        Returns:
            The money that is paid, to be passed to `settle` or `release` with the same account;
            None if a cap leaves no room for the request.

        Raises:
            UsageError: if the file of the sums cannot be read or written.
        """
        most = self._most(request)
        with self._locked():
            spent = self.spent().changed(1, most, account)
            if self._max_requests is not None and spent.num_requests > self._max_requests:
                return None
            if self._max_cost is not None and spent.cost > self._max_cost:
                return None
            self._write(spent)
        return most

    def settle(self, reserved: float, answer: HasUsage | None, account: str = "") -> None:
        """Replaces an advance payment by the price of the answer.

        Args:
            reserved: the payment.
            answer: the answer; None if the server charges nothing. An answer without a number of
                tokens and without an image that has a price costs the whole payment.
            account: account that paid.
        """
        if self.prices is None:
            return
        cost: float | None = 0.0
        if answer is not None:
            cost = self.prices.cost_of(answer.usage())
        if cost is not None and cost != reserved:
            self._change(0, cost - reserved, account)

    def release(self, reserved: float, account: str = "") -> None:
        """Returns the advance payment of a request that was not sent."""
        self._change(-1, -reserved, account)

    def reached(self, request: HasUsage, account: str = "") -> PreemptedError:
        """Returns the error for a request that a cap leaves no room for."""
        spent = self.spent()
        part = spent.accounts.get(account, Account())
        if self._max_requests is not None and spent.num_requests >= self._max_requests:
            of_account = f", {part.num_requests:,} of them for {account}" if account else ""
            return PreemptedError(
                f"stopped at the cap: {spent.num_requests:,} of {self._max_requests:,} requests "
                f"are sent{of_account} ({self._file}); all answers are kept: raise max_requests "
                "and repeat the command"
            )
        of_account = f", {part.cost:.4g} of it for {account}" if account else ""
        return PreemptedError(
            f"stopped at the cap: {spent.cost:.4g} of {self._max_cost:.4g} is spent{of_account} "
            f"({self._file}), and the next request may cost {self._most(request):.4g}; all answers "
            "are kept: raise max_cost and repeat the command"
        )

    def _most(self, request: HasUsage) -> float:
        return estimate([request], self.prices).most_cost or 0.0

    def _change(self, num_requests: int, cost: float, account: str) -> None:
        with self._locked():
            self._write(self.spent().changed(num_requests, cost, account))

    def _write(self, spent: Spent) -> None:
        write_atomic(self._file, json.dumps(dataclasses.asdict(spent)) + "\n")

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


def _account(values: Any) -> Account:  # noqa: ANN401  (JSON)
    return Account(num_requests=int(values["num_requests"]), cost=float(values["cost"]))
