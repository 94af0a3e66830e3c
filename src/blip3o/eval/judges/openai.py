"""A judge behind a server that speaks OpenAI's chat protocol."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from blip3o.core.bounds import Count, NotNegative, Positive
from blip3o.core.config import LocalPath
from blip3o.core.files import check_folder
from blip3o.remote.cache import CachedModel
from blip3o.remote.client import ChatClient
from blip3o.remote.cost import Budget, Prices
from blip3o.remote.http import ServerSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenAIJudge(ServerSettings):
    """A model of a server; its answers are kept, so scoring again costs nothing.

    The further settings are those of `ServerSettings`.

    Args:
        prompt_price: price of a million tokens that the judge reads; None if it costs nothing.
        completion_price: price of a million tokens that the judge writes.
        max_cost: most money to spend, in the currency of the prices; None for no cap.
        max_requests: most requests to send, retries included; None for no cap.
        cache: folder of the answers and of the sums that the caps limit; None for a folder of the
            model in the user's cache.
        extra: further fields of the body of each request; a field that is null removes a field.

    Raises:
        ValueError: if only one price is given, or a cap of money without prices.
    """

    kind: str = "openai"
    prompt_price: NotNegative | None = None
    completion_price: NotNegative | None = None
    max_cost: Positive | None = None
    max_requests: Count | None = None
    cache: LocalPath | None = None
    extra: dict[str, object] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ValueError("model is empty: name the judge, such as gpt-4o-2024-05-13")
        if (self.prompt_price is None) != (self.completion_price is None):
            raise ValueError("prompt_price and completion_price belong together: set both")
        if self.max_cost is not None and self.prompt_price is None:
            raise ValueError(
                "max_cost needs prompt_price and completion_price; or use max_requests"
            )

    def build(self) -> CachedModel:
        """Returns the judge.

        Raises:
            UsageError: if the address is not valid, the key is missing, or the folder cannot be
                written.
        """
        folder = self._default_folder() if self.cache is None else Path(self.cache)
        check_folder(folder)
        prices = None
        if self.prompt_price is not None and self.completion_price is not None:
            prices = Prices(prompt=self.prompt_price, completion=self.completion_price)
        budget = Budget(
            folder, prices=prices, max_cost=self.max_cost, max_requests=self.max_requests
        )
        client = ChatClient(self, budget)
        folder.mkdir(parents=True, exist_ok=True)
        extra: Mapping[str, object] = self.extra
        return CachedModel(client, folder, extra=extra)

    def _default_folder(self) -> Path:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        letters = [letter if letter.isalnum() or letter in ".-_" else "-" for letter in self.model]
        return Path(base) / "blip3o" / "judges" / "".join(letters).strip(".")
