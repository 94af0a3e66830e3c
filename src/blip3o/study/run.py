"""One run of a study: trains it, measures it, and writes its result file."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from blip3o.core.config import evolve
from blip3o.core.log import say
from blip3o.generate.pipeline import Blip3oPipeline
from blip3o.models.unified import UnifiedModel
from blip3o.runs.assemble import MODEL, assemble
from blip3o.runs.start import train
from blip3o.study.grid import Evaluation
from blip3o.study.measures import sample_images
from blip3o.study.results import SAMPLES, Point, Result, write
from blip3o.text.tokenizer import Tokenizer
from blip3o.train.adapters import merged_adapters
from blip3o.train.config import RunConfig
from blip3o.train.diverged import DivergedError
from blip3o.train.trainer import Trainer
from blip3o.weights.folder import open_model

SEED = "{seed}"
TRAIN = "train"
"""Folder of the training in the folder of a run."""


def seeded(config: RunConfig, seed: int, num_points: int) -> RunConfig:
    """Returns the config of an arm with a seed, and with checkpoints at the points of the curve.

    The text "{seed}" in a path of the data stands for the seed.
    """
    every = config.train.steps // num_points
    own = config.train.checkpoint_every
    return evolve(
        config,
        {
            "train.seed": seed,
            "train.checkpoint_every": own if every % own == 0 else every,
            "train.keep_every": every,
            "train.sample_every": 0,
            **{
                f"data.mixture.{number}.source.path": entry.source.path.replace(SEED, str(seed))
                for number, entry in enumerate(config.data.mixture)
            },
        },
    )


def complete(config: RunConfig, settings: Evaluation, arm: str, folder: Path) -> Result:
    """Trains a run to its end, measures it and writes its result; resumes an interrupted one.

    A run that diverges gets a result that says so. The checkpoints are removed once the result is
    written; the model folder stays.

    Args:
        config: the run, from `seeded`.
        settings: the measurements.
        arm: name of its arm.
        folder: folder of the run, claimed by this process.

    Raises:
        PreemptedError: if a signal asked to stop; the same call resumes.
        UsageError: if the run cannot be trained or measured.
    """
    run_dir = folder / TRAIN
    reason = ""
    try:
        train(config, run_dir)
    except DivergedError as error:
        say(f"{folder} has diverged, which is its result: {error}")
        reason = str(error)
    trainer = assemble(config, run_dir)
    trainable = sum(one.numel() for one in trainer.parameters.values())
    if reason:
        result = Result(
            arm=arm,
            seed=config.train.seed,
            status="diverged",
            reason=reason,
            trainable_parameters=trainable,
            flops_per_sample=trainer.flops_per_sample(),
        )
    else:
        result = _measure(trainer, settings, arm, trainable, folder)
    write(folder, result)
    (run_dir / "latest").unlink(missing_ok=True)
    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    return result


def _measure(
    trainer: Trainer, settings: Evaluation, arm: str, trainable: int, folder: Path
) -> Result:
    """Returns the result of a trained run.

    Args:
        trainer: a fresh trainer of the run, which still has the weights of the start.
        settings: the measurements.
        arm: name of the arm.
        trainable: number of trained weights.
        folder: folder of the run.
    """
    train = trainer.config.train
    tokenizer = open_model(trainer.run_dir / MODEL).tokenizer
    say(f"measuring {folder} at the start")
    measuring = settings.start(_pipeline(trainer, tokenizer), arm, trainer.config)
    flops = trainer.flops_per_sample()
    clock = _Clock.read(trainer.run_dir)
    points: list[Point] = []
    for step in range(train.keep_every, train.steps + 1, train.keep_every):
        say(f"measuring {folder} at step {step} of {train.steps}")
        with trainer.stored(step), merged_adapters(trainer.model):
            pipe = _pipeline(trainer, tokenizer)
            measured = measuring.point(pipe, is_last=step == train.steps)
        samples = step * train.global_batch_size
        points.append(
            Point(
                step=step,
                samples=samples,
                seconds=clock.seconds(step),
                cpu_seconds=clock.cpu_seconds(step),
                flops=samples * flops,
                scores=measured.scores,
            )
        )
    with trainer.stored(train.steps), merged_adapters(trainer.model):
        pipe = _pipeline(trainer, tokenizer)
        measured = measuring.end(pipe, measured)
        _save(sample_images(pipe, settings), folder / SAMPLES)
    return Result(
        arm=arm,
        seed=train.seed,
        status="done",
        trainable_parameters=trainable,
        flops_per_sample=flops,
        scores=measured.scores,
        items=measured.items,
        points=tuple(points),
    )


def _pipeline(trainer: Trainer, tokenizer: Tokenizer) -> Blip3oPipeline:
    assert isinstance(trainer.model, UnifiedModel)
    return Blip3oPipeline(trainer.model, tokenizer)


def _save(images: Sequence[Image.Image], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        image.save(folder / f"{number:02d}.png")


@dataclasses.dataclass(frozen=True)
class _Clock:
    """The duration of a run, at the steps of its lines of metrics.

    Args:
        steps: the steps.
        wall: seconds of training up to each step.
        cpu: CPU seconds of training up to each step.
    """

    steps: list[float]
    wall: list[float]
    cpu: list[float]

    @classmethod
    def read(cls, run_dir: Path) -> "_Clock":
        """Returns the clock of a run. Its lines hold rates, so pauses do not count."""
        clock = cls([0.0], [0.0], [0.0])
        samples = 0
        for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            seconds = (row["samples_seen"] - samples) / row["samples_per_second"]
            samples = row["samples_seen"]
            clock.steps.append(row["step"])
            clock.wall.append(clock.wall[-1] + seconds)
            clock.cpu.append(clock.cpu[-1] + seconds * row["busy_cores"])
        return clock

    def seconds(self, step: int) -> float:
        """Returns the seconds of training up to a step."""
        return float(np.interp(step, self.steps, self.wall))

    def cpu_seconds(self, step: int) -> float:
        """Returns the CPU seconds of training up to a step."""
        return float(np.interp(step, self.steps, self.cpu))
