"""The settings of a curation, and its plan: how many drafts of each category."""

import dataclasses
from collections import Counter
from pathlib import Path

from blip3o.core.bounds import Count, Positive, Whole
from blip3o.core.config import component, from_dict, override, read_yaml
from blip3o.core.errors import UsageError, unknown_name
from blip3o.core.files import check_plain_name
from blip3o.curate.draft import Draft
from blip3o.curate.models import ModelConfig
from blip3o.curate.stages import AskingStage, StageConfig

_RECIPES = Path(__file__).with_name("recipes")
UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """A curation: the plan, the models, and the stages in order.

    Args:
        name: name of the data set and of its shards.
        description: one sentence for the card.
        num_drafts: number of drafts to start from; the records are those that pass all stages.
        categories: the share of each category; the shares need not sum to 1.
        unit_size: drafts of one unit of work, which one worker does and publishes at once.
        seed: seed of all random choices.
        models: the models.
        stages: the stages, in order.
        max_cost: most money, in the currency of the prices; None for no cap.
        max_requests: most requests to servers, retries included; None for no cap.
        allow_unknown_license: whether answers of a model without a stated licence may be used.
        shard_size: records per shard of the finished set.

    Raises:
        ValueError: if a name occurs twice or is no file name, a stage asks an unknown model, or
            there are no categories or stages.
    """

    name: str
    description: str = ""
    num_drafts: Count
    categories: dict[str, float]
    unit_size: Count = 100
    seed: Whole = 0
    models: tuple[ModelConfig, ...] = component("blip3o.curate.models:MODELS", default=())
    stages: tuple[StageConfig, ...] = component("blip3o.curate.stages:STAGES")
    max_cost: Positive | None = None
    max_requests: Count | None = None
    allow_unknown_license: bool = False
    shard_size: Count = 2000

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a curation needs stages")
        if not self.categories or any(share <= 0 for share in self.categories.values()):
            raise ValueError("categories need shares above 0")
        try:
            for what, names in (
                ("the name of a curation", [self.name]),
                ("the name of a stage", self.stage_names),
                ("the name of a model", [one.name for one in self.models]),
            ):
                for name, count in Counter(names).items():
                    check_plain_name(what, name)
                    if count > 1:
                        raise ValueError(f"{what} occurs twice: {name}; give each its own name")
            for stage in self.stages:
                if isinstance(stage, AskingStage):
                    self.model(stage.model)
        except UsageError as error:
            raise ValueError(str(error)) from error

    @property
    def stage_names(self) -> list[str]:
        """The name of each stage: its own, or its kind."""
        return [one.name or one.kind for one in self.stages]

    @property
    def num_units(self) -> int:
        """Number of units of work."""
        return -(-self.num_drafts // self.unit_size)

    def check_licenses(self) -> None:
        """Checks that the licence of each model's answers is stated, unless that is waived.

        Raises:
            UsageError: if one is unknown.
        """
        unknown = [one.name for one in self.models if one.license.strip().lower() in ("", UNKNOWN)]
        if unknown and not self.allow_unknown_license:
            raise UsageError(
                f"the licence of the answers of {', '.join(unknown)} is unknown: state it "
                "(models.N.license=...), or allow it with allow_unknown_license=true"
            )

    def model(self, name: str) -> ModelConfig:
        """Returns the settings of a model.

        Raises:
            UsageError: for an unknown name.
        """
        for one in self.models:
            if one.name == name:
                return one
        raise unknown_name("model of the curation", name, [one.name for one in self.models])

    def plan(self) -> list[Draft]:
        """Returns the empty drafts: each slot goes to the category that lags most behind its share.

        So the number of each category is within 1 of its share, and a plan with more drafts begins
        with the same ones: a grown run keeps its units.
        """
        total = sum(self.categories.values())
        counts = dict.fromkeys(self.categories, 0)
        drafts: list[Draft] = []
        for slot in range(self.num_drafts):
            lags = {
                name: share / total * (slot + 1) - counts[name]
                for name, share in self.categories.items()
            }
            name = max(lags, key=lags.__getitem__)
            drafts.append(Draft(slot=slot, category=name, rank=counts[name]))
            counts[name] += 1
        return drafts

    def unit(self, number: int) -> slice:
        """Returns the slots of a unit."""
        return slice(number * self.unit_size, (number + 1) * self.unit_size)


def recipe_names() -> list[str]:
    """Returns the names of the bundled recipes, "curate.scenes" and others."""
    return sorted(f"curate.{file.stem}" for file in _RECIPES.glob("*.yaml"))


def read_curation(name: str, overrides: list[str]) -> CurateConfig:
    """Returns the settings of a bundled recipe or of a YAML file.

    Args:
        name: "curate.scenes", or the path of a file.
        overrides: `path=value` changes.

    Raises:
        UsageError: for an unknown recipe, or settings that are not valid.
    """
    file = _RECIPES / f"{name.removeprefix('curate.')}.yaml"
    if not file.is_file():
        file = Path(name).expanduser()
        if not file.is_file():
            raise unknown_name("curation", name, recipe_names())
    return override(from_dict(CurateConfig, read_yaml(file)), overrides)
