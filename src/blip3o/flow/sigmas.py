"""Noise levels (sigmas): the schedule of the sampler and the distributions of training.

Training distributions map uniform numbers to noise levels. The caller draws the uniform numbers,
because they are keyed by sample.
"""

import dataclasses
import math
from typing import Literal, Protocol

import torch
from torch import Tensor

from blip3o.core.config import Dataclass
from blip3o.core.registry import Registry

NUM_TIMESTEPS = 1000
"""Steps of the published training table; a network receives timestep = NUM_TIMESTEPS * sigma."""

Schedule = Literal["linear", "cosine"]
"""Spacing of a sampler's noise levels; see `inference_sigmas`."""


class SigmaDistribution(Dataclass, Protocol):
    """Distribution of the noise levels that training draws."""

    def sample(self, uniform: Tensor) -> Tensor:
        """Returns noise levels [B] for uniform numbers in [0, 1), [B]."""
        ...


SIGMA_DISTRIBUTIONS: Registry[type[SigmaDistribution]] = Registry(
    "sigma distribution",
    {
        "discrete_uniform": "blip3o.flow.sigmas:DiscreteUniformSigmas",
        "uniform": "blip3o.flow.sigmas:UniformSigmas",
        "logit_normal": "blip3o.flow.sigmas:LogitNormalSigmas",
        "cosine": "blip3o.flow.sigmas:CosineSigmas",
    },
    package=__name__,
)


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """Returns shifted noise levels: s sigma / (1 + (s - 1) sigma).

    Args:
        sigmas: noise levels in [0, 1], any shape.
        shift: s > 0; 1 changes nothing, larger values move the levels towards pure noise.

    Reference:
        Resolution shift of Stable Diffusion 3 (arXiv 2403.03206, eq. 23).
    """
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def cosine_sigmas(times: Tensor) -> Tensor:
    """Returns the noise levels of DDPM's cosine schedule.

    Args:
        times: (t + 1) / 1000 of step t of the published 1000, in (0, 1], float64, any shape.

    Reference:
        Improved DDPM (arXiv 2102.09672, eq. 17), with betas of at most 0.999; the schedule of
        Transfusion. Parity family `transfusion`, file `ddpm`.
    """

    def signal(times: Tensor) -> Tensor:  # the factor of the clean sample, sqrt(a)
        return torch.cos((times + 0.008) / 1.008 * math.pi / 2) / math.cos(
            0.008 / 1.008 * math.pi / 2
        )

    # The bound on betas changes only the last step, whose signal would be 0.
    last = math.sqrt(1 - 0.999) * signal(times.new_tensor(1 - 1 / NUM_TIMESTEPS))
    clean = torch.maximum(signal(times), last)
    noise = (1 - clean.square()).sqrt()
    return noise / (clean + noise)


def inference_sigmas(
    num_inference_steps: int, shift: float = 1.0, schedule: Schedule = "linear"
) -> Tensor:
    """Returns the noise levels of a sampler, from 1 down to 0, fp32 [steps + 1].

    Args:
        num_inference_steps: number of solver steps n; levels are linspace(1, 1/n, n) and 0.
        shift: see `shift_sigmas`.
        schedule: "cosine" maps the levels with `cosine_sigmas`, before the shift: Euler is then
            DDIM on that schedule, with trailing steps. Its first level is 0.99995.

    Raises:
        ValueError: if `num_inference_steps` is below 1.
    """
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
    sigmas = torch.linspace(
        1.0, 1.0 / num_inference_steps, num_inference_steps, dtype=torch.float64
    )
    sigmas = shift_sigmas(cosine_sigmas(sigmas) if schedule == "cosine" else sigmas, shift)
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteUniformSigmas:
    """Uniform distribution over the levels 1/1000, 2/1000, ..., 1, as in the published training.

    Args:
        shift: see `shift_sigmas`.
    """

    kind: str = "discrete_uniform"
    shift: float = 1.0

    def __post_init__(self) -> None:
        _require_positive("shift", self.shift)

    def sample(self, uniform: Tensor) -> Tensor:
        """Returns noise levels [B] for uniform numbers in [0, 1), [B]."""
        index = torch.floor(NUM_TIMESTEPS * uniform)
        return shift_sigmas((NUM_TIMESTEPS - index) / NUM_TIMESTEPS, self.shift)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformSigmas:
    """Uniform distribution over the levels in (0, 1].

    Args:
        shift: see `shift_sigmas`.
    """

    kind: str = "uniform"
    shift: float = 1.0

    def __post_init__(self) -> None:
        _require_positive("shift", self.shift)

    def sample(self, uniform: Tensor) -> Tensor:
        """Returns noise levels [B] for uniform numbers in [0, 1), [B]."""
        return shift_sigmas(1 - uniform, self.shift)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitNormalSigmas:
    """Levels with a normal logit: most weight lies in the middle, where learning is hardest.

    Args:
        mean: mean of the logit; positive values prefer noisier levels.
        std: standard deviation of the logit.
        shift: see `shift_sigmas`.

    Reference:
        Stable Diffusion 3 (arXiv 2403.03206, section 3.1).
    """

    kind: str = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        _require_positive("shift", self.shift)
        _require_positive("std", self.std)

    def sample(self, uniform: Tensor) -> Tensor:
        """Returns noise levels [B] for uniform numbers in [0, 1), [B]."""
        normal = torch.special.ndtri(1 - uniform)  # 1 - u is in (0, 1]; the end maps to level 1
        return shift_sigmas(torch.sigmoid(self.mean + self.std * normal), self.shift)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineSigmas:
    """Levels of a uniformly drawn step of DDPM's cosine schedule, see `cosine_sigmas`.

    Args:
        shift: see `shift_sigmas`.
    """

    kind: str = "cosine"
    shift: float = 1.0

    def __post_init__(self) -> None:
        _require_positive("shift", self.shift)

    def sample(self, uniform: Tensor) -> Tensor:
        """Returns noise levels [B] for uniform numbers in [0, 1), [B]."""
        index = torch.floor(NUM_TIMESTEPS * uniform.double())
        times = (NUM_TIMESTEPS - index) / NUM_TIMESTEPS
        return shift_sigmas(cosine_sigmas(times), self.shift)


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be greater than 0, got {value}")
