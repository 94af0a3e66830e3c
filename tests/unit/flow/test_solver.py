"""Solvers on equations with known solutions; guidance against plain arithmetic."""

import dataclasses
import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from blip3o.flow.guidance import combine
from blip3o.flow.sigmas import inference_sigmas
from blip3o.flow.solver import SOLVERS, Solver, at_levels, euler, heun
from blip3o.models.unified import SamplingConfig

each_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def test_a_model_can_name_every_solver() -> None:
    (named,) = (one.type for one in dataclasses.fields(SamplingConfig) if one.name == "solver")
    assert get_args(named) == tuple(SOLVERS)


def test_every_row_receives_its_noise_level() -> None:
    def velocity(noisy: Tensor, sigma: Tensor) -> Tensor:
        assert torch.equal(sigma, torch.tensor([0.5, 0.5]))
        return noisy + 1

    noisy = torch.randn(2, 3)
    assert torch.equal(at_levels(velocity, torch.tensor([1.0, 0.5, 0.0]))(noisy, 1), noisy + 1)


def growth(noisy: Tensor, step: int) -> Tensor:
    """The equation dx / dsigma = x, so x(0) = x(1) / e."""
    del step
    return noisy


def test_euler_is_exact_on_a_straight_path() -> None:
    clean, noise = torch.randn(2, 3, 4, dtype=torch.float64)
    result = euler(lambda noisy, step: noise - clean, noise, inference_sigmas(7))
    torch.testing.assert_close(result, clean, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (heun, 2)])
def test_error_falls_with_the_order(solver: Solver, order: int) -> None:
    noise = torch.ones(2, 1, dtype=torch.float64)
    levels = [torch.linspace(1, 0.2, n + 1, dtype=torch.float64) for n in (20, 40)]
    # The last step is an Euler step; a tiny last interval makes its error negligible.
    ends = [torch.cat([level, level[-1:] - 1e-9]) for level in levels]
    errors = [abs(float(solver(growth, noise, end, None)[0]) - math.exp(-0.8)) for end in ends]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize(("solver", "calls"), [(euler, 5), (heun, 9)])
def test_calls_and_callbacks(solver: Solver, calls: int) -> None:
    calls_at: list[int] = []
    steps: list[int] = []

    def velocity(noisy: Tensor, step: int) -> Tensor:
        calls_at.append(step)
        return noisy

    solver(velocity, torch.ones(1, 2), inference_sigmas(5), lambda step, noisy: steps.append(step))
    assert len(calls_at) == calls
    assert max(calls_at) == 4  # networks are not trained at level 0
    assert steps == [1, 2, 3, 4, 5]


@each_solver
def test_half_precision_networks_are_integrated_in_fp32(solver: Solver) -> None:
    def velocity(noisy: Tensor, step: int) -> Tensor:
        assert noisy.dtype == torch.bfloat16
        return torch.full_like(noisy, 0.001)

    start = torch.ones(1, 1).bfloat16()
    seen: list[Tensor] = []
    result = solver(velocity, start, inference_sigmas(100), lambda _, x: seen.append(x))
    assert result.dtype == torch.bfloat16
    assert float(seen[-1]) == pytest.approx(0.999, abs=1e-4)  # steps of 1e-5 vanish in bf16


def test_null_half_comes_first() -> None:
    both = torch.cat([torch.zeros(2, 3), torch.ones(2, 3)])
    assert torch.equal(combine(both, 3.0), torch.full((2, 3), 3.0))


def test_guidance_scale_per_sample() -> None:
    velocities = torch.cat([torch.full((2, 1), 2.0), torch.full((2, 1), 5.0)])
    scales = torch.tensor([1.0, 4.0])
    assert torch.equal(combine(velocities, scales), torch.tensor([[5.0], [14.0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_scale_per_sample_is_as_exact_as_one_for_all(dtype: torch.dtype) -> None:
    velocities = torch.randn(6, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(combine(velocities, torch.full((3,), 3.3)), combine(velocities, 3.3))


@each_solver
def test_a_callback_may_change_the_state(solver: Solver) -> None:
    noise = torch.ones(2, 3)
    levels = torch.tensor([1.0, 0.5, 0.0])

    def replace(num_done: int, state: torch.Tensor) -> torch.Tensor | None:
        return torch.full_like(state, 7.0) if num_done == 1 else None

    result = solver(lambda state, step: torch.zeros_like(state), noise, levels, replace)
    assert torch.equal(result, torch.full_like(noise, 7.0))
