"""The straight path between clean data and noise.

noisy = (1 - sigma) clean + sigma noise: sigma 0 is clean data, sigma 1 is pure noise, and the
velocity d noisy / d sigma = noise - clean is constant along a path. Every function takes sigma as
[B] and broadcasts it over the trailing axes of the samples.
"""

from torch import Tensor


def interpolate(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Returns the noisy sample (1 - sigma) clean + sigma noise, [B, ...].

    Args:
        clean: data, [B, ...].
        noise: standard normal numbers of the same shape.
        sigma: noise levels in [0, 1], [B].
    """
    sigma = _expand(sigma, clean)
    return (1 - sigma) * clean + sigma * noise


def velocity_target(clean: Tensor, noise: Tensor) -> Tensor:
    """Returns the velocity noise - clean that a network learns to predict, [B, ...]."""
    return noise - clean


def velocity_to_clean(velocity: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
    """Returns the clean sample noisy - sigma velocity, [B, ...].

    Args:
        velocity: velocity at the noisy sample, [B, ...].
        noisy: sample on the path, [B, ...].
        sigma: its noise levels in [0, 1], [B].
    """
    return noisy - _expand(sigma, noisy) * velocity


def clean_to_velocity(clean: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
    """Returns the velocity (noisy - clean) / sigma, [B, ...].

    Args:
        clean: clean sample, [B, ...].
        noisy: sample on the path, [B, ...].
        sigma: noise levels in (0, 1], [B]; the caller clamps levels that may be 0.
    """
    return (noisy - clean) / _expand(sigma, noisy)


def noise_to_velocity(noise: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
    """Returns the velocity (noise - noisy) / (1 - sigma), [B, ...].

    An error of the noise grows by 1 / (1 - sigma), so the caller keeps sigma away from 1.

    Args:
        noise: noise of the sample, [B, ...].
        noisy: sample on the path, [B, ...].
        sigma: its noise levels in [0, 1), [B].
    """
    return (noise - noisy) / (1 - _expand(sigma, noisy))


def to_ddpm(noisy: Tensor, sigma: Tensor) -> Tensor:
    """Returns a sample on the path as DDPM scales it, [B, ...].

    DDPM's sample sqrt(a) clean + sqrt(1 - a) noise is noisy / sqrt(sigma^2 + (1 - sigma)^2), where
    sigma = sqrt(1 - a) / (sqrt(a) + sqrt(1 - a)). If data has the variance 1, so has the result.

    DDIM on that scale is Euler on this path (parity family `transfusion`, file `ddpm`).

    Args:
        noisy: sample on the path, [B, ...].
        sigma: its noise levels in [0, 1], [B].
    """
    return noisy / _expand((sigma.square() + (1 - sigma).square()).sqrt(), noisy)


def _expand(sigma: Tensor, like: Tensor) -> Tensor:
    return sigma.reshape(sigma.shape + (1,) * (like.ndim - sigma.ndim))
