"""Solvers that follow a velocity from noise to data.

The state is kept in at least fp32 whatever type the network computes in, because rounding errors
of many small steps add up.
"""

from collections.abc import Callable

import torch
from torch import Tensor

VelocityFunction = Callable[[Tensor, Tensor], Tensor]
"""(noisy [B, ...], sigma [B], fp32) -> velocity [B, ...]."""

StepVelocity = Callable[[Tensor, int], Tensor]
"""(noisy [B, ...], index of the step) -> velocity [B, ...]; for networks that know the levels."""

StepCallback = Callable[[int, Tensor], Tensor | None]
"""Called after each step with (number of steps done, noisy [B, ...] now); may return what to go on
with instead."""


def euler(
    velocity_fn: VelocityFunction,
    noise: Tensor,
    sigmas: Tensor,
    callback: StepCallback | None = None,
) -> Tensor:
    """Returns the samples after one Euler step per interval, [B, ...].

    Args:
        velocity_fn: the network, asked at samples of the noise's type.
        noise: samples at the first noise level, [B, ...].
        sigmas: falling noise levels, [steps + 1]; see `inference_sigmas`.
        callback: called after each step.
    """
    levels, _ = _start(noise, sigmas)

    def velocity(noisy: Tensor, step: int) -> Tensor:
        return velocity_fn(noisy, levels[step].expand(len(noisy)))

    return euler_by_step(velocity, noise, sigmas, callback)


def euler_by_step(
    velocity_fn: StepVelocity,
    noise: Tensor,
    sigmas: Tensor,
    callback: StepCallback | None = None,
) -> Tensor:
    """Returns what `euler` does, with a network that was prepared for the noise levels.

    Nothing is read back from the device, so that a CUDA graph can hold the whole loop.

    Args:
        velocity_fn: the network, asked at samples of the noise's type.
        noise: samples at the first noise level, [B, ...].
        sigmas: falling noise levels on the CPU, [steps + 1].
        callback: called after each step.
    """
    dtype = torch.promote_types(noise.dtype, torch.float32)
    intervals = sigmas.to(dtype).diff().tolist()
    state = noise.to(dtype)
    for step, interval in enumerate(intervals):
        velocity = velocity_fn(state.to(noise.dtype), step).to(dtype)
        state = _report(callback, step + 1, state + interval * velocity)
    return state.to(noise.dtype)


def heun(
    velocity_fn: VelocityFunction,
    noise: Tensor,
    sigmas: Tensor,
    callback: StepCallback | None = None,
) -> Tensor:
    """Returns the samples after Heun's second-order steps, [B, ...].

    Asks the network twice a step, except in the last one, which is an Euler step because networks
    are not trained at level 0.

    Args:
        velocity_fn: the network, asked at samples of the noise's type.
        noise: samples at the first noise level, [B, ...].
        sigmas: falling noise levels, [steps + 1].
        callback: called after each step.
    """
    levels, state = _start(noise, sigmas)
    num_steps = len(levels) - 1
    for step in range(num_steps):
        interval = levels[step + 1] - levels[step]
        velocity = _velocity(velocity_fn, state, levels[step], noise.dtype)
        if step + 1 < num_steps:
            ahead = state + interval * velocity
            velocity = (velocity + _velocity(velocity_fn, ahead, levels[step + 1], noise.dtype)) / 2
        state = state + interval * velocity
        state = _report(callback, step + 1, state)
    return state.to(noise.dtype)


def _report(callback: StepCallback | None, num_done: int, state: Tensor) -> Tensor:
    changed = None if callback is None else callback(num_done, state)
    return state if changed is None else changed.to(state)


def _start(noise: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(noise.dtype, torch.float32)
    return sigmas.to(noise.device, dtype), noise.to(dtype)


def _velocity(
    velocity_fn: VelocityFunction, state: Tensor, sigma: Tensor, dtype: torch.dtype
) -> Tensor:
    velocity = velocity_fn(state.to(dtype), sigma.expand(len(state)))
    return velocity.to(state.dtype)
