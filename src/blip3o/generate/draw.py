"""Draws image features from plans, and decodes features to images: pure tensor functions."""

import torch
from torch import Tensor

from blip3o.flow.guidance import combine
from blip3o.flow.sigmas import inference_sigmas
from blip3o.flow.solver import SOLVERS, StepCallback
from blip3o.models.generators.plan import Plan
from blip3o.models.unified import SamplingConfig, UnifiedModel


@torch.no_grad()
def draw(
    plan: Plan,
    noise: Tensor,
    guidance_scale: float | Tensor,
    sampling: SamplingConfig,
    callback: StepCallback | None = None,
) -> Tensor:
    """Returns normalized features [B, N, K] drawn from a plan.

    Everything that is constant over the steps is computed once, before them.

    Args:
        plan: the meaning of P prompts.
        noise: start of the path, standard normal [B, N, K]; B is a multiple of P, and the images of
            a prompt are neighbors.
        guidance_scale: 1 follows the prompts alone; larger values push away from the empty prompt.
            A number, or one for each image, [B].
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
    return inference_sigmas(sampling.num_inference_steps, shift=sampling.sigma_shift)


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

    Args:
        plan: as for `draw`.
        noise: as for `draw`.
        guidance_scale: as for `draw`.
        sampling: as for `draw`.
        sigmas: falling noise levels on the CPU, [steps + 1].
        levels: the same on the device.
        callback: as for `draw`.

    Raises:
        ValueError: if B is not a multiple of P.
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


@torch.no_grad()
def decode_features(
    model: UnifiedModel,
    features: Tensor,
    noise: Tensor,
    num_steps: int,
    *,
    empty_features: Tensor | None = None,
    guidance_scale: float | None = None,
) -> Tensor:
    """Returns images [B, 3, P, P] in [-1, 1] of normalized features [B, N, K].

    Args:
        model: in evaluation mode.
        features: normalized features.
        noise: start of the image decoder, standard normal, [B, *noise_shape].
        num_steps: decoder steps.
        empty_features: features from which guidance pushes away, [1, N, K]; None if the decoder has
            its own.
        guidance_scale: guidance scale of the decoder; None for its own.
    """
    given = {"empty_features": empty_features, "guidance_scale": guidance_scale}
    # Not every decoder supports guidance, so only given arguments are passed on.
    asked = {name: value for name, value in given.items() if value is not None}
    return model.image_decoder.decode(features, noise, num_steps, **asked)
