"""Refuses a run whose config alone shows that it cannot work, before anything is written."""

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
"""Numbers that a checkpoint keeps of a weight: itself, its average and AdamW's two moments."""


def check_run(config: RunConfig) -> None:
    """Refuses a run whose settings contradict each other.

    Args:
        config: the whole run.

    Raises:
        UsageError: naming the settings.
    """
    check_image_px(config)
    learned = {task for one in config.objectives for task in one.tasks}
    for entry in config.data.mixture:
        if learned and entry.task not in learned:
            raise UsageError(
                f"no objective learns from the task {entry.task!r} of data.mixture; "
                f"objectives.*.tasks name {', '.join(sorted(learned))}"
            )
    if config.train.global_batch_size % world_size():
        raise UsageError(
            f"train.global_batch_size {config.train.global_batch_size} cannot be shared evenly "
            f"among {world_size()} processes"
        )


def check_image_px(config: RunConfig) -> None:
    """Refuses images of another size than the image encoder takes.

    Args:
        config: the whole run.

    Raises:
        UsageError: naming both settings.
    """
    taken = config.model.image_encoder.image_px
    if config.data.image_px != taken:
        raise UsageError(
            f"data.image_px is {config.data.image_px}, and the image encoder takes {taken} "
            "(model.image_encoder.image_px): give both the same value"
        )


def check_room(config: RunConfig, model: UnifiedModel, run_dir: Path) -> None:
    """Refuses a run whose checkpoints and model do not fit on the disk.

    Args:
        config: the whole run.
        model: its model.
        run_dir: the run folder.

    Raises:
        UsageError: with the estimated need and what is free.
    """
    train = config.train
    sizes = {name: one.numel() for name, one in model.named_parameters()}
    trained = sum(n for name, n in sizes.items() if any(is_under(name, p) for p in train.trainable))
    stored = find_checkpoints(run_dir)
    left = train.steps - (newest_step(run_dir) or 0)
    if left <= 0:
        return
    saves = -(-left // train.checkpoint_every)
    # The oldest is deleted when the newest is whole, so there is one more for a moment.
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
