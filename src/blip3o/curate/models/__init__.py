"""Models of a curation. Each kind has one file and one line in a table."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from blip3o.core.registry import Registry
from blip3o.curate.images import ImageStore
from blip3o.remote.chat import AnswerOutcome, ChatRequest
from blip3o.remote.images import ImageRequest

MODELS: "Registry[type[ModelConfig]]" = Registry(
    "model of a curation",
    {"openai": ".openai:OpenAIModel", "pipeline": ".pipeline:PipelineModel"},
    package=__name__,
)

Request: TypeAlias = ChatRequest | ImageRequest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """The answer to one request.

    Args:
        outcome: how the request ended; never "transport".
        text: the text, or the reason of a refusal.
        image: sha256 of the image file in the store; empty for texts and refusals.
        model: name and revision of the model that was asked.
        request: key of the request; empty for models that run in the process.
    """

    outcome: AnswerOutcome
    text: str = ""
    image: str = ""
    model: str = ""
    request: str = ""


Lost = Literal["stop", "ask", "drop"]
"""Treatment of a request whose answer was lost with its sender: stop the run, ask (and perhaps pay)
once more, or count it as refused."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """The run that a model works for.

    Args:
        folder: folder of the journal of requests.
        images: the store that image files go to.
        max_cost: most money of the run, in the currency of the prices; None for no cap.
        max_requests: most requests of the run, retries included; None for no cap.
        lost: treatment of requests whose answers were lost.
    """

    folder: Path
    images: ImageStore
    max_cost: float | None = None
    max_requests: int | None = None
    lost: Lost = "stop"


class CurateModel(Protocol):
    """A model that a stage asks.

    Attributes:
        license: licence or terms of its answers.
    """

    license: str

    def replies(self, requests: Sequence[Request], stage: str) -> list[Reply]:
        """Returns the reply to each request, in order.

        Args:
            requests: requests for texts or images. Equal requests get equal replies; to ask once
                more, raise `ChatRequest.attempt` or change `ImageRequest.seed`.
            stage: name of the stage, to which the costs are booked.

        Raises:
            UsageError: if the model cannot answer such requests, or refuses all.
            PreemptedError: if a cap is reached or the server does not answer.
        """
        ...


class ModelConfig(Protocol):
    """Settings of a model, a frozen dataclass."""

    @property
    def kind(self) -> str:
        """Name of the kind in `MODELS`."""
        ...

    @property
    def name(self) -> str:
        """Name by which stages ask for the model."""
        ...

    @property
    def license(self) -> str:
        """Licence or terms of its answers; "unknown" is refused unless the run allows it."""
        ...

    def identity(self) -> dict[str, object]:
        """Returns everything that shapes the answers and their licence, as JSON."""
        ...

    def build(self, place: Place) -> CurateModel:
        """Returns the model; weights are loaded, and servers asked, with the first request.

        Raises:
            UsageError: if its address or key is missing.
        """
        ...
