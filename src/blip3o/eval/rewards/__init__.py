"""Rewards over HTTP: the scorers of benchmarks for the training of other projects.

Each benchmark that gives rewards has one file here and one line in the table. `server` has the
server, `client` its client; they speak JSON and image files, never pickle.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from blip3o.core.registry import Registry

if TYPE_CHECKING:
    from pydantic import BaseModel

    from blip3o.eval.benchmark import Item, Outcome, Scorer

REWARDS: "Registry[Callable[[Sequence[str]], RewardSource]]" = Registry(
    "benchmark with rewards",
    {"geneval": ".geneval:GenEvalRewards", "scenes": ".scenes:SceneRewards"},
    package=__name__,
)
"""Entries take the `path=value` changes of the benchmark's settings."""


class RewardSource(Protocol):
    """The rewards of one benchmark."""

    @property
    def metadata(self) -> "type[BaseModel]":
        """Schema of the object that a request sends with each image."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the benchmark, as JSON."""
        ...

    def item_of(self, metadata: Any) -> "Item":  # noqa: ANN401 (an instance of `metadata`)
        """Returns the item that an image is judged by; its `id` and `number` do not matter.

        Args:
            metadata: an instance of the schema `metadata`.

        Raises:
            UsageError: if the benchmark cannot judge such an item.
        """
        ...

    def scorer(self) -> "Scorer":
        """Loads and returns the scorer; called only in the process of the scorer.

        Raises:
            UsageError: if weights are missing or wrong.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward:
    """The reward of one image.

    Args:
        score: higher is better; None if there is no judgement.
        outcome: "judged", or the reason why there is no judgement: "broken" for an image that
            cannot be read, "transport" if the scorer failed or died on it.
        data: details of the judgement, as JSON; `error` says why there is none.
    """

    score: float | None
    outcome: "Outcome" = "judged"
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
