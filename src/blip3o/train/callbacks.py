"""The events of a run that code outside the Trainer can follow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import nn
from torch.optim import AdamW

from blip3o.core.device import Precision
from blip3o.train.config import RunConfig
from blip3o.train.optimizer import Ema
from blip3o.train.progress import TrainState


class Training(Protocol):
    """The members of the `Trainer` that callbacks read."""

    run_dir: Path
    config: RunConfig
    model: nn.Module
    parameters: dict[str, nn.Parameter]
    precision: Precision
    optimizer: AdamW
    ema: Ema
    state: TrainState


class Callback:
    """Base class of callbacks; override the events of interest. Only the main process calls them.

    `step` is the number of steps done. In `on_sample` and `on_end` the model holds the averaged
    weights, whole.
    """

    def on_start(self, trainer: Training) -> None:
        """Called before the first step of a start."""

    def on_log(self, trainer: Training, step: int, values: Mapping[str, float]) -> None:
        """Called with the metrics every `train.log_every` steps."""

    def on_checkpoint(self, trainer: Training, step: int, folder: Path) -> None:
        """Called when a save has begun; its folder appears once it is complete."""

    def on_sample(self, trainer: Training, step: int) -> None:
        """Called every `train.sample_every` steps."""

    def on_end(self, trainer: Training) -> None:
        """Called after the last step, and when a finished run is started again."""
