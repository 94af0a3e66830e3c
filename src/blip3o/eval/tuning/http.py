"""The reward `http`: the scores of a reward server, which may run anywhere."""

import dataclasses
from collections.abc import Sequence

from PIL import Image

from blip3o.core.bounds import Count, Positive
from blip3o.core.errors import UsageError
from blip3o.core.types import ImageRequest
from blip3o.eval.rewards.client import RewardClient


@dataclasses.dataclass(frozen=True, kw_only=True)
class HttpRewardConfig:
    """A server that `blip3o eval serve-rewards` starts, or one that speaks like it.

    Args:
        url: address of the server, "http://127.0.0.1:8100".
        field: field of the records that holds what the server needs to know about an image: a line
            of GenEval's prompt file, for example.
        images_per_request: largest number of images that are sent together.
        patience_s: seconds without any answer after which the run stops.
    """

    kind: str = "http"
    url: str
    field: str = "item"
    images_per_request: Count = 64
    patience_s: Positive = 1800.0

    def build(self) -> "HttpReward":
        """Returns the reward; UsageError if the address is none."""
        return HttpReward(self)


class HttpReward:
    """Asks a reward server; see `HttpRewardConfig`."""

    def __init__(self, config: HttpRewardConfig) -> None:
        self._field = config.field
        self._client = RewardClient(
            config.url,
            images_per_request=config.images_per_request,
            patience_s=config.patience_s,
        )

    def score(self, images: Sequence[Image.Image], requests: Sequence[ImageRequest]) -> list[float]:
        """Returns the server's scores.

        Raises:
            UsageError: if a record lacks the field, or the server does not answer or cannot judge.
        """
        items = [request.fields.get(self._field) for request in requests]
        missing = next((n for n, item in enumerate(items) if not isinstance(item, dict)), None)
        if missing is not None:
            raise UsageError(
                f"the record of {requests[missing].prompt!r} has no object {self._field!r}, which "
                "the reward http sends to its server"
            )
        rewards = self._client.score(images, [item for item in items if isinstance(item, dict)])
        failed = [reward for reward in rewards if reward.score is None]
        if failed:
            raise UsageError(
                f"the reward server has no score for {len(failed)} of {len(images)} images; the "
                f"first: {failed[0].outcome}, {failed[0].data.get('error', 'no reason given')}"
            )
        return [reward.score for reward in rewards if reward.score is not None]
