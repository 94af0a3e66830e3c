"""Rewards of GenEval: each image is sent with the object of its line in the file of prompts."""

import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from blip3o.core.config import override, to_dict
from blip3o.core.files import read_lines
from blip3o.eval import BENCHMARKS
from blip3o.eval.benchmark import Item, Scorer
from blip3o.eval.prompt_files import BUNDLED
from blip3o.eval.rewards.schemas import Strict

Tag = Literal["single_object", "two_object", "counting", "colors", "position", "color_attr"]
Color = Literal[
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"
]
Place = tuple[Literal["left of", "right of", "above", "below"], Annotated[int, Field(ge=0)]]
_Count = Annotated[int, Field(ge=1, le=100)]


@functools.cache
def _classes() -> frozenset[str]:
    return frozenset(read_lines(BUNDLED / "geneval" / "object_names.txt"))


class Unwanted(Strict):
    """Objects that an image must not show: `count` of a class, or more."""

    class_: Annotated[str, Field(alias="class")]
    count: _Count

    @field_validator("class_")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in _classes():  # the detector never finds it, so every score would be 0
            raise ValueError(f"{name!r:.50} is not one of the detector's 80 classes")
        return name


class Wanted(Unwanted):
    """Objects that an image must show; `position` names a direction and an earlier entry."""

    color: Color | None = None
    position: Place | None = None


class GenEvalMetadata(Strict):
    """A line of GenEval's `evaluation_metadata.jsonl`."""

    tag: Tag
    include: Annotated[list[Wanted], Field(min_length=1, max_length=20)]
    exclude: Annotated[list[Unwanted] | None, Field(max_length=20)] = None
    prompt: str = ""

    @model_validator(mode="after")
    def _has_earlier_targets(self) -> "GenEvalMetadata":
        for number, wanted in enumerate(self.include):
            if wanted.position is not None and wanted.position[1] >= number:
                raise ValueError("position must name an earlier entry of include")
        return self


class GenEvalRewards:
    """Rewards of GenEval: 1 if an image is correct, else 0.

    Args:
        overrides: `path=value` changes of the settings of the benchmark.

    Raises:
        UsageError: for an unknown setting.
    """

    metadata = GenEvalMetadata

    def __init__(self, overrides: Sequence[str] = ()) -> None:
        self._benchmark = override(BENCHMARKS.get("geneval")(), list(overrides))
        self.settings: Mapping[str, Any] = to_dict(self._benchmark)

    def item_of(self, metadata: GenEvalMetadata) -> Item:
        """Returns the item of an image."""
        line = metadata.model_dump(mode="json", by_alias=True, exclude_none=True)
        return self._benchmark.item_of(line)

    def scorer(self) -> Scorer:
        """Loads the detector and CLIP."""
        return self._benchmark.scorer()
