"""Samples image features from conditions, and pictures from features: pure tensor functions."""

import torch
from torch import Tensor

from blip3o.flow.guidance import guided, with_null
from blip3o.flow.sigmas import inference_sigmas
from blip3o.flow.solver import StepCallback, euler
from blip3o.models.unified import UnifiedModel


@torch.no_grad()
def sample_features(
    model: UnifiedModel,
    condition: Tensor,
    noise: Tensor,
    *,
    num_inference_steps: int,
    guidance_scale: float,
    reference: Tensor | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Returns normalized features [B, N, K] drawn for conditions.

    Args:
        model: in evaluation mode.
        condition: backbone states at the queries, [B, Q, D].
        noise: where the path starts, standard normal [B, N, K].
        num_inference_steps: Euler steps.
        guidance_scale: 1 follows the condition alone; larger values push away from the empty one.
        reference: normalized features of pictures to edit, [B, N, K].
        callback: called after each step with (steps done, features); may return features to go
            on with.
    """
    sampling = model.config.sampling
    sigmas = inference_sigmas(num_inference_steps, shift=sampling.sigma_shift)
    is_guided = guidance_scale != 1.0
    if is_guided:
        condition = with_null(condition)
        reference = None if reference is None else torch.cat([reference, reference])
    context_cache = model.dit.prepare_context(condition)

    def velocity(noisy: Tensor, sigma: Tensor) -> Tensor:
        return model.velocity(
            noisy, sigma, condition, reference, context_cache, sampling.truncate_timestep
        )

    velocity_fn = guided(velocity, guidance_scale) if is_guided else velocity
    return euler(velocity_fn, noise, sigmas, callback)


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
    """Returns pictures [B, 3, P, P] in [-1, 1] of normalized features [B, N, K].

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
