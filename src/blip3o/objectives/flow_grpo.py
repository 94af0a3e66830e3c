"""Flow-GRPO: policy gradients through the steps of a stochastic sampler of the flow."""

import dataclasses

import torch
from torch import Tensor

from blip3o.core.bounds import Count, NotNegative, Positive
from blip3o.core.types import Rollouts
from blip3o.flow.solver import VelocityFunction
from blip3o.models.unified import UnifiedModelConfig
from blip3o.objectives.policy import Keys, Points, PolicyConfig, PolicyObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowGrpoConfig(PolicyConfig):
    """Reward tuning by Flow-GRPO; see `PolicyConfig` for the other settings.

    Args:
        num_inference_steps: steps of the stochastic sampler; fewer than in use, to save time
            (published: 10, and 40 in use).
        noise_level: amount of noise that the sampler adds (published: 0.7).
        trained_steps: steps of each image that the loss covers, drawn at random; fewer save time
            and memory (published: all). The last step adds no noise and is never among them.
        clip_range: largest change of a step's probability ratio that is still learned.
        kl_weight: factor of the divergence from the start weights (published: 0.04).
    """

    kind: str = "flow_grpo"
    num_inference_steps: Count | None = 10
    noise_level: Positive = 0.7
    trained_steps: Count = 2
    clip_range: Positive = 1e-3
    kl_weight: NotNegative = 0.04

    def build(self, model_config: UnifiedModelConfig) -> "FlowGrpo":
        """Returns the objective for a model.

        Raises:
            ValueError: if there are fewer steps than the loss shall cover.
        """
        return FlowGrpo(self, model_config)


class FlowGrpo(PolicyObjective):
    """Makes the noisy steps that led to good images more probable, and those to bad ones less.

    A step from level s to s' adds noise and follows a velocity v so that all levels keep the
    distribution that they have without the noise. With b = a sqrt(s / (1 - s)) it has

        mean       x + (s' - s) (v + b^2 / (2 s) (x + (1 - s) v))
        deviation  b sqrt(s - s')

    The log-probability of a step is the mean over its elements, as in the published code. The loss
    is the clipped ratio of PPO with the rewards' advantages.

    Args:
        config: see `FlowGrpoConfig`.
        model_config: config of the model to train.

    Reference:
        Flow-GRPO (arXiv 2505.05470). Pure noise, where b is infinite, takes the 1 - s of the next
        level.
    """

    def __init__(self, config: FlowGrpoConfig, model_config: UnifiedModelConfig) -> None:
        super().__init__(config, model_config)
        noisy_steps = len(self.sigmas) - 2
        if config.trained_steps > noisy_steps:
            raise ValueError(
                f"trained_steps must be at most {noisy_steps}, the steps of the sampler but the "
                f"last; got {config.trained_steps}"
            )
        self._noise_level, self._clip_range = config.noise_level, config.clip_range
        self._trained_steps = config.trained_steps

    @property
    def num_points(self) -> int:
        """See `PolicyObjective`."""
        return self._trained_steps

    def draw(self, velocity: VelocityFunction, noise: Tensor, keys: Keys) -> Points:
        """Returns images of the stochastic sampler, and random steps of each of them."""
        levels = self.sigmas.to(noise)
        states = [noise]
        for step in range(len(levels) - 1):
            here, after = (level.expand(len(noise)) for level in levels[step : step + 2])
            speed = velocity(states[-1], here)
            if step == len(levels) - 2:
                states.append(states[-1] + _wide(after - here) * speed)
                break
            mean, deviation = self._step(states[-1], here, after, speed)
            fresh = keys.normal(noise.shape[1:], f"step/{step}").to(noise)
            states.append(mean + deviation * fresh)
        path = torch.stack(states, 1)  # [G, steps + 1, N, K]
        chances = [keys.uniform(f"trained/{step}") for step in range(len(levels) - 2)]
        chosen = torch.stack(chances, 1).argsort(1)[:, : self._trained_steps].to(noise.device)
        lines = torch.arange(len(noise), device=noise.device)[:, None]
        return Points(
            states[-1],
            path[lines, chosen],
            levels[chosen],
            levels[chosen + 1],
            path[lines, chosen + 1],
        )

    def losses(self, velocity: Tensor, rollouts: Rollouts, advantages: Tensor) -> Tensor:
        """See `PolicyObjective` and the class."""
        change = self._log_probability(velocity, rollouts)
        ratio = (change - self._log_probability(rollouts.old, rollouts)).exp()
        clipped = ratio.clamp(1 - self._clip_range, 1 + self._clip_range)
        advantages = advantages[..., None]
        return -torch.minimum(ratio * advantages, clipped * advantages)

    def distances(self, velocity: Tensor, other: Tensor, rollouts: Rollouts) -> Tensor:
        """Returns the divergence of two steps, mean over the elements; see `PolicyObjective`."""
        levels = rollouts.noisy, rollouts.sigma, rollouts.next_sigma
        mean, deviation = self._step(*levels, velocity)
        return ((mean - self._step(*levels, other)[0]) / deviation).square().mean((-2, -1)) / 2

    def _log_probability(self, velocity: Tensor, rollouts: Rollouts) -> Tensor:
        """Returns the log-probability of the steps, up to a constant, [B, G, D]."""
        mean, deviation = self._step(rollouts.noisy, rollouts.sigma, rollouts.next_sigma, velocity)
        return -((rollouts.target - mean) / deviation).square().mean((-2, -1)) / 2

    def _step(
        self, noisy: Tensor, sigma: Tensor, next_sigma: Tensor, velocity: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns mean [..., N, K] and deviation [..., 1, 1] of a step between levels [...]."""
        clean_share = 1 - torch.where(sigma < 1, sigma, next_sigma)
        speed = self._noise_level**2 * sigma / clean_share  # b^2
        drift = _wide(speed / (2 * sigma)) * (noisy + _wide(1 - sigma) * velocity)
        mean = noisy + _wide(next_sigma - sigma) * (velocity + drift)
        return mean, _wide((speed * (sigma - next_sigma)).sqrt())


def _wide(levels: Tensor) -> Tensor:
    """Returns levels [...] in a form that broadcasts over features [..., N, K]."""
    return levels[..., None, None]
