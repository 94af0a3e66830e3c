"""Rewards of the scenes benchmark: an exact detector judges drawings of known things."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from blip3o.core.config import override, to_dict
from blip3o.data.scenes.prompts import CATEGORIES
from blip3o.data.scenes.things import COLORS, THINGS
from blip3o.eval.benchmark import Item
from blip3o.eval.rewards.schemas import Strict
from blip3o.eval.scenes import ScenesBenchmark, SceneScorer


class WantedMetadata(Strict):
    """Things that an image must show; see `WantedThing`."""

    thing: str
    color: str | None = None
    count: Annotated[int, Field(ge=1, le=100)] = 1

    @model_validator(mode="after")
    def _is_known(self) -> "WantedMetadata":
        if self.thing not in THINGS:
            raise ValueError(f"the scenes have no thing {self.thing!r:.50}")
        if self.color is not None and self.color not in COLORS:
            raise ValueError(f"the scenes have no color {self.color!r:.50}")
        return self


class SceneMetadata(Strict):
    """The objects that an image must show: the fields of `EvalPrompt` (data/scenes/prompts)."""

    category: str
    include: Annotated[list[WantedMetadata], Field(min_length=1, max_length=20)]
    relation: tuple[int, Literal["left of", "right of", "above", "below"], int] | None = None
    prompt: str = ""
    background: str | None = None
    """No rule checks it."""

    @field_validator("category")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in CATEGORIES:
            raise ValueError(f"unknown category {name!r:.50}; known: {', '.join(CATEGORIES)}")
        return name

    @model_validator(mode="after")
    def _has_both_ends(self) -> "SceneMetadata":
        if self.relation is not None:
            ends = {self.relation[0], self.relation[2]}
            if len(ends) < 2 or not ends <= set(range(len(self.include))):
                raise ValueError("relation must name two different entries of include")
        return self


class SceneRewards:
    """Rewards of text to image in the scenes benchmark: 1 if an image shows its prompt, else 0.

    Args:
        overrides: `path=value` changes of the settings of `ScenesBenchmark`.

    Raises:
        UsageError: for an unknown setting.
    """

    metadata = SceneMetadata

    def __init__(self, overrides: Sequence[str] = ()) -> None:
        self._benchmark = override(ScenesBenchmark(), list(overrides))
        self.settings: Mapping[str, Any] = to_dict(self._benchmark)

    def item_of(self, metadata: SceneMetadata) -> Item:
        """Returns the item of an image."""
        data = metadata.model_dump(mode="json", include={"include", "relation"})
        data["part"] = "text_to_image"
        return Item(id="", number=0, prompt=metadata.prompt, category=metadata.category, data=data)

    def scorer(self) -> SceneScorer:
        """Returns the scorer; it has no weights."""
        return self._benchmark.scorer()
