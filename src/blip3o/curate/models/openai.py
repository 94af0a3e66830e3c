"""A model of a server that speaks OpenAI's protocol, for texts and for images."""

import dataclasses
from collections.abc import Sequence

from blip3o.core.bounds import NotNegative, Positive
from blip3o.curate.asking.client import BrokerClient
from blip3o.curate.asking.messages import Service
from blip3o.curate.models import Place, Reply, Request
from blip3o.remote.batches import BatchSettings, BatchSize
from blip3o.remote.http import Server, ServerSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenAIModel(ServerSettings):
    """A model of a server; its answers are kept in the folder of the run and never asked twice.

    The further settings are those of `ServerSettings`.

    Args:
        name: name by which stages ask for the model.
        license: licence or terms of its answers, as the cards of records state them.
        size: size of drawn images, "1024x1024"; None for the server's own.
        prompt_price: price of a million tokens that the model reads.
        completion_price: price of a million tokens that it writes.
        image_price: price of one drawn image.
        extra: further fields of the body of each request; a field that is null removes a field.
        batch: whether chat requests go in batches, which servers answer within a day at a lower
            price; the prices above are then those of a batch. Images are still asked for one by
            one. `max_in_flight` is the most batches at the same time.
        batch_wait_s: time without a further request after which a batch is sent.
        batch_size: most requests of a batch.
        batch_poll_s: time between two looks at a batch, and the pause before failed requests go
            into a further one; the pause doubles each time, up to `longest_pause_s`.
    """

    kind: str = "openai"
    name: str
    license: str = "unknown"
    size: str | None = None
    prompt_price: NotNegative = 0.0
    completion_price: NotNegative = 0.0
    image_price: NotNegative = 0.0
    extra: dict[str, object] = dataclasses.field(default_factory=dict)
    batch: bool = False
    batch_wait_s: Positive = 10.0
    batch_size: BatchSize = 10_000
    batch_poll_s: Positive = 60.0

    def identity(self) -> dict[str, object]:
        """Returns everything that shapes the answers; see `ModelConfig`."""
        return {
            "model": self.full_name,
            "size": self.size,
            "extra": self.extra,
            "license": self.license,
        }

    def service(self, place: Place) -> Service:
        """Returns the server with its prices and the caps of the run."""
        names = [field.name for field in dataclasses.fields(ServerSettings)]
        return Service(
            server=ServerSettings(**{name: getattr(self, name) for name in names}),
            size=self.size,
            extra=tuple(sorted(self.extra.items())),
            prompt_price=self.prompt_price,
            completion_price=self.completion_price,
            image_price=self.image_price,
            max_cost=place.max_cost,
            max_requests=place.max_requests,
            batches=BatchSettings(
                wait_s=self.batch_wait_s, size=self.batch_size, poll_s=self.batch_poll_s
            )
            if self.batch
            else None,
        )

    def build(self, place: Place) -> "ServedModel":
        """Returns the model; see `ModelConfig`."""
        Server(self)  # finds a wrong address or a missing key before any work
        return ServedModel(self.license, self.service(place), BrokerClient(place))


class ServedModel:
    """A `CurateModel` that asks a server through the broker of its run.

    Args:
        license: licence or terms of the answers.
        service: the server.
        client: the connection to the broker.
    """

    def __init__(self, license: str, service: Service, client: BrokerClient) -> None:
        self.license = license
        self._service = service
        self._client = client

    def replies(self, requests: Sequence[Request], stage: str) -> list[Reply]:
        """Returns the reply to each request, in order; see `CurateModel`."""
        return self._client.replies(self._service, requests, stage) if requests else []
