"""Checks a run's config and disk space before anything is written."""

from pathlib import Path

from blip3o.core.distributed import world_size
from blip3o.core.errors import UsageError
from blip3o.core.files import require_room
from blip3o.models.unified import UnifiedModel
from blip3o.train.checkpoint import find_checkpoints, newest_step
from blip3o.train.config import RunConfig
from blip3o.train.optimizer import is_under

_FLOAT_BYTES = 4
_COPIES = 4
"""A checkpoint stores each trained weight, its average and AdamW's two moments."""


def check_run(config: RunConfig) -> None:
    """Checks that the settings of a run agree with each other and with the number of processes.

    Raises:
        UsageError: if they do not; names the settings.
    """
    learned = {task for one in config.objectives for task in one.tasks}
    for entry in config.data.mixture:
        if learned and entry.task not in learned:
            raise UsageError(
                f"no objective learns from the task {entry.task!r} of data.mixture; "
                f"use one of {', '.join(sorted(learned))}, or change objectives.*.tasks"
            )
    if config.train.global_batch_size % world_size():
        raise UsageError(
            f"train.global_batch_size {config.train.global_batch_size} cannot be shared evenly "
            f"among {world_size()} processes; make it a multiple of {world_size()}"
        )


def check_room(config: RunConfig, model: UnifiedModel, run_dir: Path) -> None:
    """Checks that the disk has room for the checkpoints and the model of a run.

    Raises:
        UsageError: if it has not; states the estimated and the free bytes.
    """
    train = config.train
    sizes = {name: one.numel() for name, one in model.named_parameters()}
    trained = sum(n for name, n in sizes.items() if any(is_under(name, p) for p in train.trainable))
    stored = find_checkpoints(run_dir)
    left = train.steps - (newest_step(run_dir) or 0)
    if left <= 0:
        return
    saves = -(-left // train.checkpoint_every)
    # The oldest is deleted once the newest is complete, so one more exists for a moment.
    more = max(1, min(saves, train.keep_last + 1 - len(stored)))
    if train.keep_every:
        more += max(0, min(saves, left // train.keep_every) - train.keep_last)
    need = 0 if train.adapter else more * _COPIES * _FLOAT_BYTES * trained
    if not (run_dir / "model").exists():
        need += _FLOAT_BYTES * sum(sizes.values())
    require_room(
        run_dir,
        need,
        f"{more} checkpoints and the model of {run_dir}",
        "use another --out, or a lower train.keep_last",
    )
