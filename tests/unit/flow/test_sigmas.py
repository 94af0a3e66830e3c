"""Noise levels of samplers and of training."""

import dataclasses

import pytest
import torch

from blip3o.core.config import from_dict, to_dict
from blip3o.flow.sigmas import (
    SIGMA_DISTRIBUTIONS,
    DiscreteUniformSigmas,
    LogitNormalSigmas,
    UniformSigmas,
    inference_sigmas,
    shift_sigmas,
)


def test_inference_levels_decrease_from_one_to_zero() -> None:
    expected = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    torch.testing.assert_close(inference_sigmas(4), expected)
    assert torch.equal(inference_sigmas(1), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="at least 1"):
        inference_sigmas(0)


def test_cosine_levels_are_closest_in_the_middle() -> None:
    levels = inference_sigmas(10, schedule="cosine")
    gaps = -levels.diff()
    assert bool((gaps > 0).all())
    assert float(levels[0]) == pytest.approx(1.0, abs=1e-4)
    assert float(levels[-1]) == 0.0
    assert float(levels[5]) == pytest.approx(0.5, abs=0.01)
    assert int(gaps.argmin()) in (4, 5)
    shifted = inference_sigmas(10, 3.0, "cosine")
    torch.testing.assert_close(shifted, shift_sigmas(levels, 3.0))


def test_shift_keeps_the_ends_and_moves_the_middle() -> None:
    sigmas = inference_sigmas(4, shift=3.0)
    torch.testing.assert_close(sigmas, torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0]))
    uniform = torch.rand(8, dtype=torch.float64)
    torch.testing.assert_close(shift_sigmas(shift_sigmas(uniform, 3.0), 1 / 3.0), uniform)


def test_discrete_uniform_is_the_published_table() -> None:
    uniform = torch.tensor([0.0, 0.000999, 0.001, 0.5, 0.999, 0.9999], dtype=torch.float64)
    sigmas = DiscreteUniformSigmas().sample(uniform)
    expected = torch.tensor([1.0, 1.0, 0.999, 0.5, 0.001, 0.001], dtype=torch.float64)
    assert torch.equal(sigmas, expected)


@pytest.mark.parametrize("name", SIGMA_DISTRIBUTIONS.names())
def test_every_distribution_stays_in_range_and_round_trips(name: str) -> None:
    config = from_dict(SIGMA_DISTRIBUTIONS.get(name), {"kind": name, "shift": 2.0})
    assert from_dict(type(config), to_dict(config)) == config
    uniform = torch.cat([torch.zeros(1), torch.rand(1000), torch.ones(1) - 2**-24]).double()
    sigmas = config.sample(uniform)
    assert bool(((sigmas > 0) & (sigmas <= 1)).all())
    with pytest.raises(ValueError, match="shift"):
        dataclasses.replace(config, shift=0.0)


def test_distributions_follow_their_quantiles() -> None:
    quantiles = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    assert float(UniformSigmas().sample(quantiles).mean()) == pytest.approx(0.5, abs=1e-3)
    middle = torch.tensor([0.5, 0.1586552539], dtype=torch.float64)  # the mean and + 1 std
    sigmas = LogitNormalSigmas(mean=0.5, std=2.0).sample(middle)
    torch.testing.assert_close(sigmas.logit(), torch.tensor([0.5, 2.5]).double(), atol=1e-6, rtol=0)
