"""Rewards of GenEval: each image is sent with the object of its line in the file of prompts."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from blip3o.core.config import override, to_dict
from blip3o.eval.benchmark import Item, Scorer
from blip3o.eval.geneval.benchmark import GenEvalBenchmark
from blip3o.eval.rewards.schemas import Strict

_Count = Annotated[int, Field(ge=1)]


class Unwanted(Strict):
    """Objects that an image must not show: `count` of a class, or more."""

    class_: Annotated[str, Field(alias="class")]
    count: _Count


class Wanted(Unwanted):
    """Objects that an image must show; `position` names a direction and an earlier entry."""

    color: str | None = None
    position: tuple[str, int] | None = None


class GenEvalMetadata(Strict):
    """A line of GenEval's `evaluation_metadata.jsonl`; the benchmark checks the names in it."""

    tag: str
    include: Annotated[list[Wanted], Field(min_length=1)]
    exclude: list[Unwanted] | None = None
    prompt: str = ""


class GenEvalRewards:
    """Rewards of GenEval: 1 if an image is correct, else 0.

    Args:
        overrides: `path=value` changes of the settings of the benchmark.

    Raises:
        UsageError: for an unknown setting.
    """

    metadata = GenEvalMetadata

    def __init__(self, overrides: Sequence[str] = ()) -> None:
        self._benchmark = override(GenEvalBenchmark(), list(overrides))
        self.settings: Mapping[str, Any] = to_dict(self._benchmark)

    def item_of(self, metadata: GenEvalMetadata) -> Item:
        """Returns the item of an image."""
        line = metadata.model_dump(mode="json", by_alias=True, exclude_none=True)
        return self._benchmark.item_of(line)

    def scorer(self) -> Scorer:
        """Loads the detector and CLIP."""
        return self._benchmark.scorer()
