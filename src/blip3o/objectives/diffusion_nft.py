"""DiffusionNFT: reward tuning on the forward process, by flow matching on drawn images."""

import dataclasses

import torch
from torch import Tensor

from blip3o.core.bounds import Count, NotNegative, Positive
from blip3o.core.config import component
from blip3o.core.types import Rollouts
from blip3o.flow.path import interpolate, velocity_target
from blip3o.flow.sigmas import SigmaDistribution, UniformSigmas
from blip3o.flow.solver import SOLVERS, VelocityFunction, at_levels
from blip3o.models.unified import UnifiedModelConfig
from blip3o.objectives.policy import Keys, Points, PolicyConfig, PolicyObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionNftConfig(PolicyConfig):
    """Reward tuning by DiffusionNFT; see `PolicyConfig` for the other settings.

    Args:
        beta: how far the positive and the negative velocity lie from the old policy, in units of
            the model's distance. A smaller number takes larger steps.
        draws: independent (noise, sigma) pairs of each drawn image.
        sigmas: distribution of the noise levels, a config from `SIGMA_DISTRIBUTIONS`.
        kl_weight: factor of the squared distance to the velocity of the start weights (published:
            1e-4).
    """

    kind: str = "diffusion_nft"
    beta: Positive = 1.0
    draws: Count = 2
    sigmas: SigmaDistribution = component(
        "blip3o.flow.sigmas:SIGMA_DISTRIBUTIONS", default=UniformSigmas()
    )
    kl_weight: NotNegative = 1e-4

    def build(self, model_config: UnifiedModelConfig) -> "DiffusionNft":
        """Returns the objective for a model."""
        return DiffusionNft(self, model_config)


class DiffusionNft(PolicyObjective):
    """Pulls the model to the velocities of good images and pushes it away from those of bad ones.

    The rewards of a prompt's images are normalized to r = 1/2 + clip(advantage, -1, 1) / 2. With
    the old velocity o, the model's velocity v and the straight path's velocity u = noise - clean,
    the loss of a point is the mean over its elements of

        r (o + beta (v - o) - u)^2 + (1 - r) (o - beta (v - o) - u)^2

    Only drawn images and their rewards are needed, so any solver may draw them.

    Args:
        config: see `DiffusionNftConfig`.
        model_config: config of the model to train.

    Reference:
        DiffusionNFT (arXiv 2509.16117). The paper draws without guidance. Here the policy is the
        guided velocity if `guidance_scale` is not 1: the advantages of a prompt add up to zero, so
        a velocity that is not exactly that of its own images gains no bias. The paper's division
        by the absolute error is left out.
    """

    def __init__(self, config: DiffusionNftConfig, model_config: UnifiedModelConfig) -> None:
        super().__init__(config, model_config)
        self._beta, self._draws, self._levels = config.beta, config.draws, config.sigmas
        self._solver = SOLVERS[model_config.sampling.solver]

    @property
    def num_points(self) -> int:
        """See `PolicyObjective`."""
        return self._draws

    def draw(self, velocity: VelocityFunction, noise: Tensor, keys: Keys) -> Points:
        """Returns images of the model's own sampler, and random points between them and noise."""
        levels = self.sigmas.to(noise.device)
        clean = self._solver(at_levels(velocity, levels), noise, self.sigmas, None)
        noisy: list[Tensor] = []
        sigmas: list[Tensor] = []
        targets: list[Tensor] = []
        for number in range(self._draws):
            fresh = keys.normal(clean.shape[1:], f"point-noise/{number}").to(clean)
            sigma = self._levels.sample(keys.uniform(f"sigma/{number}")).to(clean)
            noisy.append(interpolate(clean, fresh, sigma))
            sigmas.append(sigma)
            targets.append(velocity_target(clean, fresh))
        sigma = torch.stack(sigmas, 1)
        ends = torch.zeros_like(sigma)  # the path leads straight to the image
        return Points(clean, torch.stack(noisy, 1), sigma, ends, torch.stack(targets, 1))

    def losses(self, velocity: Tensor, rollouts: Rollouts, advantages: Tensor) -> Tensor:
        """See `PolicyObjective` and the class."""
        good = (0.5 + 0.5 * advantages.clamp(-1, 1))[..., None]
        change = self._beta * (velocity - rollouts.old)
        positive = _mean_square(rollouts.old + change - rollouts.target)
        negative = _mean_square(rollouts.old - change - rollouts.target)
        return good * positive + (1 - good) * negative

    def distances(self, velocity: Tensor, other: Tensor, rollouts: Rollouts) -> Tensor:
        """Returns the mean squared distance of two velocities; see `PolicyObjective`."""
        del rollouts
        return _mean_square(velocity - other)


def _mean_square(error: Tensor) -> Tensor:
    """Returns the mean over the elements of each point, [B, G, D]."""
    return error.square().mean((-2, -1))
