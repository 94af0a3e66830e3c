"""Contract of every DiT in the table, at `tiny()` size."""

import copy
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from blip3o.core.config import from_dict, to_dict
from blip3o.models.dit import DITS

each_dit = pytest.mark.parametrize("name", DITS.names())


def build(name: str) -> Any:
    """Returns a network with random weights, as new gates may be zero."""
    torch.manual_seed(0)
    dit = DITS.get(name).tiny().build()
    for parameter in dit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return dit


def inputs(config: Any, rows: int = 4, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(rows, config.grid**2, config.in_channels, generator=generator)
    condition = torch.randn(rows, 5, config.condition_size, generator=generator)
    return [noisy.to(dtype), torch.rand(rows, generator=generator), condition.to(dtype)]


@each_dit
def test_config_round_trips(name: str) -> None:
    config = DITS.get(name).tiny()
    assert config.kind == name
    assert from_dict(type(config), to_dict(config)) == config


@each_dit
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shape_and_type_follow_the_features(name: str, dtype: torch.dtype) -> None:
    dit = build(name).to(dtype)
    noisy, sigma, condition = inputs(dit.config, dtype=dtype)
    velocity = dit.velocity(noisy, sigma, condition)
    assert velocity.shape == noisy.shape
    assert velocity.dtype == dtype
    assert bool(velocity.isfinite().all())


@each_dit
def test_builds_on_the_meta_device(name: str) -> None:
    config = DITS.get(name).tiny()
    with torch.device("meta"):
        dit = config.build()
    assert all(tensor.is_meta for tensor in [*dit.parameters(), *dit.buffers()])
    real = build(name)
    dit.load_state_dict(real.state_dict(), strict=True, assign=True)
    arguments = inputs(config)
    assert torch.equal(dit.velocity(*arguments), real.velocity(*arguments))


@each_dit
def test_gradient_reaches_every_parameter_and_the_condition(name: str) -> None:
    dit = build(name)
    noisy, sigma, condition = inputs(dit.config)
    condition.requires_grad_()
    dit.velocity(noisy, sigma, condition).square().sum().backward()
    for key, leaf in [*dit.named_parameters(), ("condition", condition)]:
        assert leaf.grad is not None, key
        assert bool(leaf.grad.isfinite().all()), key
        assert float(leaf.grad.abs().sum()) > 0, key


@each_dit
def test_saved_weights_give_bit_equal_outputs(name: str) -> None:
    dit = build(name)
    again = DITS.get(name).tiny().build()
    again.load_state_dict(load(save(dit.state_dict())), strict=True)
    arguments = inputs(dit.config)
    assert torch.equal(again.velocity(*arguments), dit.velocity(*arguments))


@each_dit
def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    dit = build(name)
    noisy, sigma, condition = inputs(dit.config)
    with torch.no_grad():
        batch = dit.velocity(noisy, sigma, condition)
        for row in range(len(noisy)):
            one = slice(row, row + 1)
            alone = dit.velocity(noisy[one], sigma[one], condition[one])
            torch.testing.assert_close(alone, batch[one], rtol=0, atol=1e-5)


@each_dit
def test_prepared_context_equals_the_plain_path(name: str) -> None:
    dit = build(name)
    noisy, sigma, condition = inputs(dit.config)
    with torch.no_grad():
        context = dit.prepare_context(condition)
        fast = dit.velocity(noisy, sigma, condition, context_cache=context)
        torch.testing.assert_close(fast, dit.velocity(noisy, sigma, condition), rtol=0, atol=1e-6)


@each_dit
def test_is_deterministic_and_can_be_copied(name: str) -> None:
    dit = build(name)
    arguments = inputs(dit.config)
    first = dit.velocity(*arguments)
    assert torch.equal(dit.velocity(*arguments), first)
    assert torch.equal(copy.deepcopy(dit).velocity(*arguments), first)


@each_dit
def test_prepared_sampling_equals_the_plain_path(name: str) -> None:
    dit = build(name)
    noisy, _, condition = inputs(dit.config)
    sigmas = torch.tensor([1.0, 0.4])
    with torch.no_grad():
        prepared = dit.prepare(condition[:2], sigmas, num_images=2, is_guided=True)
        repeated = condition[:2].repeat_interleave(2, 0)
        both = torch.cat([torch.zeros_like(repeated), repeated])
        for step, sigma in enumerate(sigmas):
            expected = dit.velocity(torch.cat([noisy, noisy]), sigma.expand(8), both)
            got = prepared.velocity(noisy, step)
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
