"""Samples image features from conditions, and images from features: pure tensor functions."""

import torch
from torch import Tensor

from blip3o.flow.guidance import combine, guided, with_null
from blip3o.flow.sigmas import inference_sigmas
from blip3o.flow.solver import SOLVERS, StepCallback, at_levels
from blip3o.models.unified import UnifiedModel


@torch.no_grad()
def sample_features(
    model: UnifiedModel,
    condition: Tensor,
    noise: Tensor,
    *,
    num_inference_steps: int,
    guidance_scale: float | Tensor,
    reference: Tensor | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Returns normalized features [B, N, K] drawn for conditions.

    All that is constant over the steps is computed once, before them.

    Args:
        model: in evaluation mode.
        condition: backbone states at the queries of P prompts, [P, Q, D].
        noise: where the path starts, standard normal [B, N, K]; B is a multiple of P, and the
            images of a prompt are neighbors.
        num_inference_steps: steps of the model's solver.
        guidance_scale: 1 follows the condition alone; larger values push away from the empty one;
            a number, or one for each image, [B].
        reference: normalized features of images to edit, [P, N, K].
        callback: called after each step with (steps done, features); may return features to go
            on with.

    Raises:
        ValueError: if B is no multiple of P.
    """
    sigmas = noise_levels(model, num_inference_steps)
    return follow_velocity(
        model,
        condition,
        noise,
        reference,
        sigmas=sigmas,
        levels=sigmas.to(noise.device),
        guidance_scale=guidance_scale,
        callback=callback,
    )


def noise_levels(model: UnifiedModel, num_inference_steps: int) -> Tensor:
    """Returns the noise levels that a model's sampler visits, fp32 on the CPU, [steps + 1]."""
    return inference_sigmas(num_inference_steps, shift=model.config.sampling.sigma_shift)


def follow_velocity(
    model: UnifiedModel,
    condition: Tensor,
    noise: Tensor,
    reference: Tensor | None,
    *,
    sigmas: Tensor,
    levels: Tensor,
    guidance_scale: float | Tensor,
    callback: StepCallback | None = None,
) -> Tensor:
    """Returns normalized features like `sample_features`, without a copy to or from the device.

    Args:
        model: in evaluation mode.
        condition: [P, Q, D].
        noise: [B, N, K].
        reference: [P, N, K] or None.
        sigmas: falling noise levels on the CPU, [steps + 1].
        levels: the same on the device.
        guidance_scale: see `sample_features`.
        callback: see `sample_features`.

    Raises:
        ValueError: if B is no multiple of P.
    """
    num_images, rest = divmod(len(noise), len(condition))
    if rest:
        raise ValueError(f"{len(noise)} images cannot be shared out among {len(condition)} prompts")
    is_guided = isinstance(guidance_scale, Tensor) or guidance_scale != 1.0
    prepared = model.dit.prepare(
        condition,
        levels[:-1],
        num_images=num_images,
        is_guided=is_guided,
        reference=reference,
        truncate_timestep=model.config.sampling.truncate_timestep,
    )

    def velocity(noisy: Tensor, step: int) -> Tensor:
        velocities = prepared.velocity(noisy, step)
        return combine(velocities, guidance_scale) if is_guided else velocities

    return SOLVERS[model.config.sampling.solver](velocity, noise, sigmas, callback)


@torch.no_grad()
def sample_features_plain(
    model: UnifiedModel,
    condition: Tensor,
    noise: Tensor,
    *,
    num_inference_steps: int,
    guidance_scale: float,
    reference: Tensor | None = None,
) -> Tensor:
    """Returns what `sample_features` does by one whole pass of the network a step.

    The reference that the fast path is tested and timed against; arguments as there.
    """
    num_images = len(noise) // len(condition)
    condition = condition.repeat_interleave(num_images, 0)
    reference = None if reference is None else reference.repeat_interleave(num_images, 0)
    is_guided = guidance_scale != 1.0
    if is_guided:
        condition = with_null(condition)
        reference = None if reference is None else torch.cat([reference, reference])
    truncate = model.config.sampling.truncate_timestep

    def velocity(noisy: Tensor, sigma: Tensor) -> Tensor:
        return model.velocity(noisy, sigma, condition, reference, truncate_timestep=truncate)

    velocity_fn = guided(velocity, guidance_scale) if is_guided else velocity
    sigmas = noise_levels(model, num_inference_steps)
    told = at_levels(velocity_fn, sigmas.to(noise.device))
    return SOLVERS[model.config.sampling.solver](told, noise, sigmas, None)


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
        noise: standard normal numbers the decoder starts from, [B, *noise_shape].
        num_steps: decoder steps.
        empty_features: features to be guided away from, [1, N, K]; None if the decoder has its own.
        guidance_scale: of a decoder that is guided; None for its own number.
    """
    given = {"empty_features": empty_features, "guidance_scale": guidance_scale}
    # Not every decoder is guided, so only what is asked for is handed on.
    asked = {name: value for name, value in given.items() if value is not None}
    return model.image_decoder.decode(features, noise, num_steps, **asked)
