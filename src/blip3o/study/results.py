"""The result file of a run. A run is done when its file is there."""

import dataclasses
import json
from pathlib import Path
from typing import Literal, TypeAlias

from blip3o.core.config import from_dict, to_dict
from blip3o.core.errors import UsageError
from blip3o.core.files import write_atomic

RESULT, FAILURE = "result.json", "failure.json"
SAMPLES = "samples"
"""Folder of the sample images of a run, 00.png, 01.png and so on."""

Scores: TypeAlias = dict[str, float]
"""Measured values by name; `blip3o.study.measures` names those of methods."""


Items: TypeAlias = dict[str, tuple[float, ...]]
"""Scores of single prompts by the name of their group, in the same order in all runs of a seed."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """Everything that was measured of a run: scores, and those of single prompts."""

    scores: Scores
    items: Items = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """A point of the curves of a run.

    Args:
        step: number of optimizer steps done.
        samples: number of samples trained on.
        seconds: seconds of training.
        cpu_seconds: CPU seconds of training, without data workers.
        flops: operations of training.
        scores: measured values.
    """

    step: int
    samples: int
    seconds: float
    cpu_seconds: float
    flops: float
    scores: Scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a run.

    Args:
        arm: name of the arm.
        seed: the run's seed.
        status: "done"; or "diverged": training failed for the reason given, and nothing was
            measured.
        reason: why the run has diverged.
        trainable_parameters: number of trained weights.
        flops_per_sample: operations of a training sample, forward and backward.
        scores: measured values at the end of training.
        items: scores of single prompts, if the study keeps them.
        points: points of the curves, the end included.
    """

    arm: str
    seed: int
    status: Literal["done", "diverged"]
    reason: str = ""
    trainable_parameters: int
    flops_per_sample: float
    scores: Scores = dataclasses.field(default_factory=dict)
    items: Items = dataclasses.field(default_factory=dict)
    points: tuple[Point, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """The reason why a run has failed; it is tried again, and the file is removed then."""

    arm: str
    seed: int
    reason: str


def run_folder(out: Path, arm: str, seed: int) -> Path:
    """Returns the folder of a run in the folder of its study."""
    return out / "runs" / arm / f"seed-{seed}"


def write(folder: Path, record: Result | Failure) -> None:
    """Writes a result or a failure to the folder of its run; a result replaces a failure."""
    name = RESULT if isinstance(record, Result) else FAILURE
    write_atomic(folder / name, json.dumps(to_dict(record), indent=1) + "\n")
    if isinstance(record, Result):
        (folder / FAILURE).unlink(missing_ok=True)


def read(folder: Path) -> Result | Failure | None:
    """Returns the result or the failure in the folder of a run; None if it has neither.

    Raises:
        UsageError: if the file cannot be read or is not such a file.
    """
    kinds: tuple[tuple[str, type[Result] | type[Failure]], ...] = (
        (RESULT, Result),
        (FAILURE, Failure),
    )
    for name, kind in kinds:
        file = folder / name
        try:
            return from_dict(kind, json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, UsageError) as error:
            raise UsageError(f"{file} is not the result of a run: {error}") from error
    return None
