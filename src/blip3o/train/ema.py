"""An exponential moving average of the trained weights: smoother, and what is saved in the end."""

import torch

from blip3o.train.learner import local
from blip3o.train.optimizer import NamedParameters


class Ema:
    """Averages of parameters; of sharded ones each process averages its shard.

    Args:
        parameters: what to average, by name.
        decay: share of the old average kept at each step; less in the first steps.
    """

    def __init__(self, parameters: NamedParameters, decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self.averages = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after a step.

        Args:
            step: number of the step, from 0; early averages must forget the fresh weights.
        """
        decay = min(self._decay, (step + 1) / (step + 10))
        weights = [local(parameter.detach()) for parameter in self._parameters.values()]
        averages = [local(average) for average in self.averages.values()]
        torch._foreach_lerp_(averages, weights, 1 - decay)
