"""The parts of a study: arms, seeds, measurements, and the claims that it tests."""

import abc
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from blip3o.core.bounds import Count, Seed
from blip3o.core.config import component, evolve, override
from blip3o.core.errors import UsageError
from blip3o.eval.scenes import ScenesBenchmark
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.study.claims import Claim, Results
from blip3o.study.results import Measured
from blip3o.train.config import RunConfig

Recipe: TypeAlias = Callable[..., RunConfig]
"""A recipe. If it takes a folder of earlier stages, it gets that of the study's shared runs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of training that a study compares.

    Args:
        name: name of its folder, "clip_fm".
        title: its name in the report, "CLIP + flow matching".
        config: a recipe.
        overrides: changes of the recipe, dotted path -> value.
    """

    name: str
    title: str
    config: Recipe
    overrides: Mapping[str, object] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(abc.ABC):
    """The measurements of every run; prompts and noise are the same for all runs of a seed.

    Args:
        num_points: points of the curves, evenly spaced, the end included.
        benchmark: the scenes benchmark at the end of a run; its world, seed, steps and guidance
            apply to all measurements.
        sample_prompts: prompts of the sample images.
    """

    num_points: Count
    benchmark: ScenesBenchmark
    sample_prompts: tuple[str, ...] = ()

    @abc.abstractmethod
    def start(self, pipe: Blip3oPipeline, arm: str, config: RunConfig) -> "Measuring":
        """Measures a model before its training, and returns the measuring of its run.

        Args:
            pipe: the model; it is trained later.
            arm: name of the arm.
            config: the run, with its seed.
        """


class Measuring(Protocol):
    """The measuring of one run."""

    def point(self, pipe: Blip3oPipeline, *, is_last: bool) -> Measured:
        """Returns the measurements at a point of the curves."""
        ...

    def end(self, pipe: Blip3oPipeline, last: Measured) -> Measured:
        """Returns the measurements of the last point, and those that are made once."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudySettings:
    """The numbers of a study that a command may change.

    Args:
        seeds: a run of each arm has each of these seeds, which set its weights, data order and
            noise.
        evaluation: the measurements, a subclass of `Evaluation`.
    """

    seeds: tuple[Seed, ...] = (0, 1, 2)
    evaluation: Any = component("blip3o.study:EVALUATIONS")

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different, and at least one, got {list(self.seeds)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A named grid of runs.

    Args:
        name: name in the table of studies.
        title: heading of the report.
        arms: the ways of training to compare. All have the same number of steps and samples.
        settings: seeds and measurements.
        claims: the claims to decide.
        shared: runs that are trained once, in this order, before the arms, which may start from
            their models: recipes by the name of their folder.
        write_data: writes data of the study's own into the folder of the shared runs; files that
            are complete stay.
        section: returns a further section of the report, in Markdown, and writes its images into
            the folder of the study.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    settings: StudySettings
    claims: tuple[Claim, ...] = ()
    shared: Mapping[str, Recipe] = dataclasses.field(default_factory=dict)
    write_data: "Callable[[Grid, Path], None] | None" = None
    section: Callable[[Results, Path], str] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """The configs of all runs of a study, with the changes of a command applied.

    Args:
        settings: seeds and measurements.
        arms: configs by the name of their arm, with the seed of the recipe.
        shared: configs of the shared runs by name.
    """

    settings: StudySettings
    arms: dict[str, RunConfig]
    shared: dict[str, RunConfig]


_SHARED = "shared"


def resolve(study: Study, assignments: Sequence[str], shared: Path) -> Grid:
    """Returns the configs of all runs of a study.

    Args:
        study: the study.
        assignments: `path=value` changes. A path that starts with the name of a setting of the
            study changes it (`seeds`, `evaluation.num_points`), a path `shared.NAME.*` changes a
            shared run, and any other path changes the runs of all arms (`train.steps`).
        shared: folder of the shared runs.

    Raises:
        UsageError: for an unknown path or a bad value, if the arms differ in steps or samples, or
            if the points of the curves do not divide the steps.
    """
    names = {field.name for field in dataclasses.fields(StudySettings)}
    of_study: list[str] = []
    of_arms: list[str] = []
    of_shared: dict[str, list[str]] = {name: [] for name in study.shared}
    for assignment in assignments:
        first, _, rest = assignment.partition(".")
        name, _, path = rest.partition(".")
        if first == _SHARED and name in of_shared:
            of_shared[name].append(path)
        elif first.partition("=")[0] in names:
            of_study.append(assignment)
        else:
            of_arms.append(assignment)
    grid = Grid(
        settings=override(study.settings, of_study),
        arms={
            arm.name: override(evolve(_config(arm.config, shared), arm.overrides), of_arms)
            for arm in study.arms
        },
        shared={
            name: override(_config(recipe, shared), of_shared[name])
            for name, recipe in study.shared.items()
        },
    )
    _check_equal(grid)
    return grid


def _config(recipe: Recipe, shared: Path) -> RunConfig:
    return recipe(shared) if inspect.signature(recipe).parameters else recipe()


def _check_equal(grid: Grid) -> None:
    sizes = {
        name: (config.train.steps, config.train.global_batch_size)
        for name, config in grid.arms.items()
    }
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {steps} x {batch}" for name, (steps, batch) in sizes.items())
        raise UsageError(f"the arms must have equal steps and batches, got {found}")
    points = grid.settings.evaluation.num_points
    for steps, _ in sizes.values():
        if steps % points:
            raise UsageError(
                f"train.steps must be a multiple of evaluation.num_points {points}, got {steps}"
            )
