"""Solvers that integrate a velocity from noise to data.

The state is kept in fp32 or wider whatever the type of the network, because the rounding errors of
many small steps add up.
"""

from collections.abc import Callable

import torch
from torch import Tensor

VelocityFunction = Callable[[Tensor, Tensor], Tensor]
"""(noisy [B, ...], sigma [B], fp32) -> velocity [B, ...]; see `at_levels`."""

StepVelocity = Callable[[Tensor, int], Tensor]
"""(noisy [B, ...], index of the noise level) -> velocity [B, ...], for a fixed schedule."""

StepCallback = Callable[[int, Tensor], Tensor | None]
"""Called after each step with (number of finished steps, noisy [B, ...]); may return a replacement
for the noisy samples."""

Solver = Callable[[StepVelocity, Tensor, Tensor, StepCallback | None], Tensor]
"""The type of `euler` and `heun`."""


def at_levels(velocity_fn: VelocityFunction, levels: Tensor) -> StepVelocity:
    """Returns a velocity function that takes the index of a noise level instead of its value.

    Args:
        velocity_fn: the network.
        levels: noise levels on the device of the network, [steps + 1].
    """
    return lambda noisy, step: velocity_fn(noisy, levels[step].expand(len(noisy)))


def euler(
    velocity_fn: StepVelocity, noise: Tensor, sigmas: Tensor, callback: StepCallback | None = None
) -> Tensor:
    """Returns the samples after one Euler step per interval, [B, ...].

    The loop never reads from the device, so a CUDA graph can capture it as a whole.

    Args:
        velocity_fn: the network, called with samples of the noise's type.
        noise: samples at the first noise level, [B, ...].
        sigmas: decreasing noise levels on the CPU, [steps + 1]; see `inference_sigmas`.
        callback: called after each step.
    """
    intervals, state = _start(noise, sigmas)
    for step, interval in enumerate(intervals):
        velocity = velocity_fn(state.to(noise.dtype), step).to(state.dtype)
        state = _report(callback, step + 1, state + interval * velocity)
    return state.to(noise.dtype)


def heun(
    velocity_fn: StepVelocity, noise: Tensor, sigmas: Tensor, callback: StepCallback | None = None
) -> Tensor:
    """Returns the samples after Heun's second-order steps, [B, ...].

    Calls the network twice per step. The last step is an Euler step, because networks are not
    trained at level 0. A CUDA graph can capture the loop, like that of `euler`.

    Args:
        velocity_fn: the network, called with samples of the noise's type.
        noise: samples at the first noise level, [B, ...].
        sigmas: decreasing noise levels on the CPU, [steps + 1].
        callback: called after each step.
    """
    intervals, state = _start(noise, sigmas)
    for step, interval in enumerate(intervals):
        velocity = velocity_fn(state.to(noise.dtype), step).to(state.dtype)
        if step + 1 < len(intervals):
            ahead = (state + interval * velocity).to(noise.dtype)
            velocity = (velocity + velocity_fn(ahead, step + 1).to(state.dtype)) / 2
        state = _report(callback, step + 1, state + interval * velocity)
    return state.to(noise.dtype)


SOLVERS: dict[str, Solver] = {"euler": euler, "heun": heun}
"""Solvers by the names that a model's `sampling.solver` accepts."""


def _start(noise: Tensor, sigmas: Tensor) -> tuple[list[float], Tensor]:
    dtype = torch.promote_types(noise.dtype, torch.float32)
    return sigmas.to(dtype).diff().tolist(), noise.to(dtype)


def _report(callback: StepCallback | None, num_done: int, state: Tensor) -> Tensor:
    changed = None if callback is None else callback(num_done, state)
    return state if changed is None else changed.to(state)
