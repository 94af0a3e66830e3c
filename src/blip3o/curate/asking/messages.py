"""Messages between workers and the broker."""

import dataclasses
import hashlib

from blip3o.curate.models import Lost, Reply, Request
from blip3o.remote.batches import BatchSettings
from blip3o.remote.cache import describe
from blip3o.remote.chat import ChatRequest
from blip3o.remote.http import ServerSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Service:
    """A server with everything that shapes and limits its requests.

    Args:
        server: the server and the pace.
        size: size of drawn images, "1024x1024"; None for the server's own.
        extra: further fields of each request's body; a field that is None removes a field.
        prompt_price: price of a million tokens that the model reads.
        completion_price: price of a million tokens that it writes.
        image_price: price of one drawn image.
        max_cost: most money of the whole run; None for no cap.
        max_requests: most requests of the whole run; None for no cap.
        batches: settings of batches of chat requests; None to send each request by itself.
    """

    server: ServerSettings
    size: str | None = None
    extra: tuple[tuple[str, object], ...] = ()
    prompt_price: float = 0.0
    completion_price: float = 0.0
    image_price: float = 0.0
    max_cost: float | None = None
    max_requests: int | None = None
    batches: BatchSettings | None = None

    @property
    def has_prices(self) -> bool:
        """Whether the server costs anything."""
        return bool(self.prompt_price or self.completion_price or self.image_price)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """A request of a worker.

    Args:
        number: number of the request on its connection.
        service: the server to ask.
        request: the request.
        stage: name of the stage that asks.
        lost: treatment of a request whose answer was lost.
    """

    number: int
    service: Service
    request: Request
    stage: str
    lost: Lost


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told:
    """The broker's answer to a `Wanted`.

    Args:
        number: number of the request.
        reply: the reply; None if there is none.
        fault: the reason why there is none.
        is_final: whether the user must change something; otherwise the same command may succeed
            later.
    """

    number: int
    reply: Reply | None = None
    fault: str = ""
    is_final: bool = False


def completed(service: Service, request: Request) -> Request:
    """Returns a request with the further fields of its server; those of images are the client's."""
    if isinstance(request, ChatRequest):
        return dataclasses.replace(request, extra={**request.extra, **dict(service.extra)})
    return request


def described(service: Service, request: Request) -> dict[str, object]:
    """Returns a completed request as JSON, with hashes of its images: the content of its key."""
    if isinstance(request, ChatRequest):
        return describe(request)
    return {
        "prompt": request.prompt,
        "seed": request.seed,
        "images": [hashlib.sha256(data).hexdigest() for data in request.images],
        "size": service.size,
        "extra": dict(service.extra),
    }
