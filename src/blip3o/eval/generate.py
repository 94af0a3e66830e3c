"""The stage that generates samples: whole groups of the plan, each file written atomically."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from blip3o.core.errors import UsageError
from blip3o.core.files import write_atomic
from blip3o.core.log import progress
from blip3o.core.shard import WHOLE, Shard
from blip3o.eval.benchmark import Benchmark, Item
from blip3o.eval.models import Asked, EvaluatedModel, Output, Refused
from blip3o.eval.plan import SAMPLES, Job, Plan, sample_file
from blip3o.imaging.encode import to_png

SUFFIXES = (".png", ".txt", ".refused")


def generate_samples(
    plan: Plan, benchmark: Benchmark, model: EvaluatedModel, out: Path, shard: Shard = WHOLE
) -> None:
    """Writes the samples of a shard that are not there yet.

    Args:
        plan: the plan.
        benchmark: gives the input images.
        model: the model.
        out: folder of the evaluation.
        shard: the part of the groups that this process does.

    Raises:
        UsageError: as `EvaluatedModel.outputs`.
    """
    folder = out / SAMPLES
    groups = plan.chunks(benchmark.batch_size)[shard.number - 1 :: shard.count]
    missing = [jobs for jobs in groups if any(find(folder, job) is None for job in jobs)]
    for jobs in progress(missing, what="generate"):
        for job, output in zip(jobs, outputs_of(jobs, benchmark, model), strict=True):
            if find(folder, job) is None:
                _write(folder, job, output)


def outputs_of(jobs: Sequence[Job], benchmark: Benchmark, model: EvaluatedModel) -> list[Output]:
    """Returns what a model gives for a group of samples."""
    sources: dict[str, list[Image.Image]] = {}
    for item, _ in jobs:
        if item.id not in sources:
            sources[item.id] = sources_of(benchmark, item)
    return model.outputs(jobs[0].item.task, [Asked(job, sources[job.item.id]) for job in jobs])


def sources_of(benchmark: Benchmark, item: Item) -> list[Image.Image]:
    """Returns the input images of an item; none for text to image."""
    return [] if item.task == "text_to_image" else benchmark.sources(item)


def find(folder: Path, job: Job) -> Path | None:
    """Returns the file of a sample; None if there is none."""
    files = (sample_file(folder, job, suffix) for suffix in SUFFIXES)
    return next((file for file in files if file.exists()), None)


def _write(folder: Path, job: Job, output: Output) -> None:
    if isinstance(output, Image.Image):
        data, suffix = to_png(output), ".png"
    elif isinstance(output, Refused):
        data, suffix = output.reason.encode(), ".refused"
    else:
        data, suffix = output.encode(), ".txt"
    file = sample_file(folder, job, suffix)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {file.parent}: {error}") from error
    write_atomic(file, data)
