"""The part of a step before its losses: images that earlier policies draw, on every process."""

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from blip3o.core.device import Precision
from blip3o.core.distributed import exchange
from blip3o.core.errors import UsageError
from blip3o.core.types import Batch
from blip3o.models.unified import UnifiedModel
from blip3o.objectives import DrawsImages, Objective
from blip3o.train.learner import Learner

_Act = Callable[[DrawsImages, UnifiedModel, Batch], Batch]


class Policies:
    """The policies of a run with rewards: its averaged weights draw, its start weights hold back.

    Args:
        learner: the model, still with its start weights, and the objectives.
        objectives: the objectives, in the order of the learner's.
        averages: averaged weights by name, which training changes.
    """

    def __init__(
        self, learner: Learner, objectives: Sequence[Objective], averages: Mapping[str, Tensor]
    ) -> None:
        self._learner = learner
        self._objectives = objectives
        self._averages = averages
        drawing = [one for one in objectives if isinstance(one, DrawsImages)]
        self.are_needed = bool(drawing)
        # Every start of a run builds them anew from the same files, so no checkpoint stores them.
        self._start: dict[str, Tensor] = {}
        if any(one.needs_start for one in drawing):
            self._start = {name: average.clone() for name, average in averages.items()}

    def roll_out(
        self, batches: Sequence[Batch], seed: int, precision: Precision
    ) -> list[list[Batch]]:
        """Returns the batches for each objective, with rollouts for those that need them.

        All processes must call it, in evaluation mode.

        Args:
            batches: this process's batches of a step.
            seed: the run's seed.
            precision: device and dtype of the run.

        Raises:
            UsageError: on all processes, if a reward fails on any of them.
        """
        rolled = [list(batches) for _ in self._objectives]
        error = None
        # Autocast keeps cast weights until it ends, so it begins anew with other weights.
        with self._learner.holding(self._averages), torch.no_grad(), precision.autocast():
            try:
                self._act(rolled, lambda one, model, batch: one.roll_out(model, batch, seed))
            except UsageError as caught:
                error = caught
        for one in exchange(error):
            if one is not None:
                raise one
        if self._start:
            with self._learner.holding(self._start), torch.no_grad(), precision.autocast():
                self._act(rolled, _add_start)
        return rolled

    def _act(self, rolled: list[list[Batch]], act: _Act) -> None:
        """Replaces each batch of an objective with rollouts by what `act` makes of it."""
        model = self._learner.model
        for number, objective in enumerate(self._objectives):
            if not isinstance(objective, DrawsImages):
                continue
            assert isinstance(model, UnifiedModel)
            of_batch = functools.partial(act, objective, model)
            for place, batch in enumerate(rolled[number]):
                if batch.task in objective.tasks:
                    rolled[number][place] = self._learner(number, batch, 0, of_batch)[1]


def _add_start(objective: DrawsImages, model: UnifiedModel, batch: Batch) -> Batch:
    return objective.add_start(model, batch) if objective.needs_start else batch
