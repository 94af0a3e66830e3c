"""The events of a run that code outside the Trainer can follow."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blip3o.train.trainer import Trainer


class Callback:
    """Base class of callbacks; override the events of interest. Only the main process calls them.

    `step` is the number of steps done. In `on_sample` and `on_end` the model holds the averaged
    weights, whole.
    """

    def on_start(self, trainer: "Trainer") -> None:
        """Called before the first step of a start."""

    def on_log(self, trainer: "Trainer", step: int, values: Mapping[str, float]) -> None:
        """Called with the metrics every `train.log_every` steps."""

    def on_checkpoint(self, trainer: "Trainer", step: int, folder: Path) -> None:
        """Called when a save has begun; its folder appears once it is complete."""

    def on_sample(self, trainer: "Trainer", step: int) -> None:
        """Called every `train.sample_every` steps."""

    def on_end(self, trainer: "Trainer") -> None:
        """Called after the last step, and when a finished run is started again."""
