"""Draws image features from plans: a solver follows the velocity from noise to features."""

import torch
from torch import Tensor

from blip3o.flow.guidance import combine
from blip3o.flow.sigmas import inference_sigmas
from blip3o.flow.solver import SOLVERS, StepCallback
from blip3o.models.generators.plan import Plan
from blip3o.models.unified import SamplingConfig


@torch.no_grad()
def draw(
    plan: Plan,
    noise: Tensor,
    guidance_scale: float | Tensor,
    sampling: SamplingConfig,
    callback: StepCallback | None = None,
) -> Tensor:
    """Returns normalized features [B, N, K] drawn from a plan.

    Args:
        plan: plan of P prompts.
        noise: start of the path, standard normal [B, N, K]; B is a multiple of P, and the images of
            a prompt are neighbors.
        guidance_scale: 1 turns guidance off; larger values push away from the empty prompt. A
            number, or one for each image, [B].
        sampling: the solver, its number of steps and its noise levels.
        callback: called after each step with (steps done, features); may return features with which
            the solver continues.

    Raises:
        ValueError: if B is not a multiple of P.
    """
    sigmas = noise_levels(sampling)
    return follow(
        plan, noise, guidance_scale, sampling, sigmas, sigmas.to(noise.device), callback=callback
    )


def noise_levels(sampling: SamplingConfig) -> Tensor:
    """Returns the noise levels that a sampler visits, fp32 on the CPU, [steps + 1]."""
    return inference_sigmas(sampling.num_inference_steps, sampling.sigma_shift, sampling.schedule)


def follow(
    plan: Plan,
    noise: Tensor,
    guidance_scale: float | Tensor,
    sampling: SamplingConfig,
    sigmas: Tensor,
    levels: Tensor,
    *,
    callback: StepCallback | None = None,
) -> Tensor:
    """Returns features as `draw` does, without a copy to or from the device.

    `sigmas` are the noise levels on the CPU, [steps + 1], and `levels` the same on the device. The
    other arguments and the errors are those of `draw`.
    """
    num_images, rest = divmod(len(noise), len(plan))
    if rest:
        raise ValueError(f"{len(noise)} images cannot be divided among {len(plan)} prompts")
    is_guided = isinstance(guidance_scale, Tensor) or guidance_scale != 1.0
    prepared = plan.sampling(
        levels[:-1],
        num_images=num_images,
        is_guided=is_guided,
        truncate_timestep=sampling.truncate_timestep,
    )

    def velocity(noisy: Tensor, step: int) -> Tensor:
        velocities = prepared.velocity(noisy, step)
        return combine(velocities, guidance_scale) if is_guided else velocities

    return SOLVERS[sampling.solver](velocity, noise, sigmas, callback)
