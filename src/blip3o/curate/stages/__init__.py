"""Stages of a curation. Each has one file and one line in a table."""

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from blip3o.core.registry import Registry
from blip3o.curate.desk import Desk
from blip3o.curate.draft import Draft
from blip3o.curate.models import Request

STAGES: "Registry[type[StageConfig]]" = Registry(
    "stage",
    {
        "templates": ".templates:TemplatesStage",
        "write": ".write:WriteStage",
        "mine": ".mine:MineStage",
        "decontaminate": ".decontaminate:DecontaminateStage",
        "draw": ".draw:DrawStage",
        "filter": ".filter:FilterStage",
        "scenes": ".scenes:ScenesStage",
        "scene_check": ".scenes:SceneCheckStage",
        "judge": ".judge:JudgeStage",
        "rewrite": ".rewrite:RewriteStage",
        "dedup": ".dedup:DedupStage",
        "balance": ".balance:BalanceStage",
        "review": ".review:ReviewStage",
    },
    package=__name__,
)


class StageConfig(Protocol):
    """Settings of a stage, a frozen dataclass, and its work.

    A stage is a function of drafts: the result depends on nothing but the drafts, the settings,
    the seed of the run and the answers of models. It returns each draft, changed or not, in order.
    A stage that asks a model has the setting `model`, the name of a model of the run.

    Attributes:
        version: version of the stage's code; raise it when the same settings would do otherwise.
        is_whole: whether the stage needs the drafts of all units at once.
    """

    version: ClassVar[int]
    is_whole: ClassVar[bool]

    @property
    def kind(self) -> str:
        """Name of the stage in `STAGES`."""
        ...

    @property
    def name(self) -> str:
        """Name of the stage in its run, and of its folder; empty for the kind."""
        ...

    def fingerprint(self) -> str:
        """Returns a hash of the files that the stage reads; empty if it reads none.

        Raises:
            UsageError: if a file cannot be read.
        """
        ...

    def run(self, drafts: Sequence[Draft], desk: Desk) -> list[Draft]:
        """Returns the drafts after the stage.

        Args:
            drafts: drafts of one unit, or all if `is_whole`; dropped ones pass unchanged.
            desk: the name of the stage, the models, the images and the random numbers.

        Raises:
            UsageError: if a setting or a file is not valid.
            PreemptedError: if a cap is reached or a server does not answer; the unit is done later.
        """
        ...


@runtime_checkable
class AskingStage(Protocol):
    """A stage that asks a model, at most once or a few times for each draft.

    Attributes:
        model: name of the model.
    """

    @property
    def model(self) -> str:
        """Name of the model of the run that it asks."""
        ...

    def examples(self) -> list[Request]:
        """Returns the requests that one draft needs at most, of usual length, for an estimate."""
        ...
