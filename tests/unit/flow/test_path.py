"""Conversions on the path are inverses of each other."""

import torch

from blip3o.flow import path


def samples() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.001, 0.3, 0.7, 0.999], dtype=torch.float64)
    return clean, noise, sigma, path.interpolate(clean, noise, sigma)


def test_ends_of_the_path() -> None:
    clean, noise, _, _ = samples()
    assert torch.equal(path.interpolate(clean, noise, torch.zeros(4)), clean)
    assert torch.equal(path.interpolate(clean, noise, torch.ones(4)), noise)


def test_velocity_is_the_derivative_with_respect_to_sigma() -> None:
    clean, noise, sigma, noisy = samples()
    ahead = path.interpolate(clean, noise, sigma + 1e-6)
    torch.testing.assert_close(
        (ahead - noisy) / 1e-6, path.velocity_target(clean, noise), atol=1e-6, rtol=0
    )


def test_round_trips() -> None:
    clean, noise, sigma, noisy = samples()
    velocity = path.velocity_target(clean, noise)
    exact = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(path.velocity_to_clean(velocity, noisy, sigma), clean, **exact)
    torch.testing.assert_close(path.clean_to_velocity(clean, noisy, sigma), velocity, **exact)
