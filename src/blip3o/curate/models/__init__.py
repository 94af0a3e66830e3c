"""Models of a curation. Each kind has one file and one line in a table."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

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

    def build(self, folder: Path, images: ImageStore) -> CurateModel:
        """Returns the model.

        Args:
            folder: folder of the run, which keeps the answers.
            images: the store that image files go to.

        Raises:
            UsageError: if its address, key, weights or files are missing.
        """
        ...
