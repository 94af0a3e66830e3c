"""Image blocks that predict noise: conversion to velocities, highest level and loss."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from blip3o.core.types import Batch
from blip3o.flow.path import interpolate, noise_to_velocity, to_ddpm
from blip3o.flow.sigmas import CosineSigmas
from blip3o.models.generators.blocks import MAX_NOISE_LEVEL, BlockPlan
from blip3o.models.generators.lmfusion import LMFusionConfig
from blip3o.models.generators.transfusion import TransfusionConfig
from blip3o.models.prompts import Prompts
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.objectives.flow_matching import FlowMatchingConfig

KINDS: list[type[TransfusionConfig | LMFusionConfig]] = [TransfusionConfig, LMFusionConfig]
IDS = torch.randint(10, 300, (3, 6), generator=torch.Generator().manual_seed(0))


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model_with(generator: TransfusionConfig | LMFusionConfig) -> UnifiedModel:
    torch.manual_seed(0)
    model = dataclasses.replace(UnifiedModelConfig.tiny(), generator=generator).build().eval()
    for parameter in model.generator.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def plan_of(model: UnifiedModel) -> BlockPlan:
    plan = model.plan(Prompts(input_ids=IDS, attention_mask=torch.ones_like(IDS).bool()))
    assert isinstance(plan, BlockPlan)
    return plan


def outputs_of(model: UnifiedModel) -> list[Tensor]:
    """Returns a list that receives what the network predicts."""
    outputs: list[Tensor] = []
    layer = model.generator.get_submodule("patch_out")
    layer.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    return outputs


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_predicted_noise_becomes_a_velocity(
    kind: type[TransfusionConfig | LMFusionConfig],
) -> None:
    model = model_with(kind(prediction="noise"))
    outputs, noisy = outputs_of(model), random(3, 4, 8)
    sigma = torch.tensor([0.0, 0.4, 0.9])
    velocity = plan_of(model).velocity(noisy, sigma)
    torch.testing.assert_close(velocity, noise_to_velocity(outputs[0], noisy, sigma))
    # The network reads DDPM's scale: with the same weights it is the network of velocities there.
    same = model_with(kind())
    torch.testing.assert_close(plan_of(same).velocity(to_ddpm(noisy, sigma), sigma), outputs[0])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_pure_noise_is_read_at_the_highest_level(
    kind: type[TransfusionConfig | LMFusionConfig],
) -> None:
    plan, noisy = plan_of(model_with(kind(prediction="noise"))), random(3, 4, 8)
    highest = torch.full((3,), MAX_NOISE_LEVEL)
    at_one = plan.velocity(noisy, torch.ones(3))
    assert bool(at_one.isfinite().all())
    assert torch.equal(at_one, plan.velocity(noisy, highest))
    assert not torch.equal(at_one, plan.velocity(noisy, highest - 0.01))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_squared_error_of_the_noise(
    kind: type[TransfusionConfig | LMFusionConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_with(kind(prediction="noise"))
    config = FlowMatchingConfig(sigmas=CosineSigmas(), condition_dropout=0.0)
    objective = config.build(model.config)
    batch = Batch(
        task="text_to_image",
        indices=torch.arange(3),
        epochs=torch.zeros(3, dtype=torch.int64),
        input_ids=IDS,
        attention_mask=torch.ones_like(IDS).bool(),
        target_features=random(3, 4, 16),
    )
    noise, sigma = random(3, 4, 8, seed=2), torch.tensor([0.1, 0.5, 0.98])
    monkeypatch.setattr(objective, "_draw", lambda *arguments: (noise, sigma))
    outputs = outputs_of(model)
    loss = objective(model, batch, 0)
    error = (outputs[0] - noise).square().mean()
    torch.testing.assert_close(loss.loss_sum / loss.count, error, rtol=1e-5, atol=0)


def test_a_perfect_network_of_noise_has_the_true_velocity() -> None:
    model = model_with(TransfusionConfig(prediction="noise"))
    clean, noise, sigma = random(3, 4, 8), random(3, 4, 8, seed=2), torch.tensor([0.1, 0.5, 0.98])
    model.generator.get_submodule("patch_out").register_forward_hook(lambda *_: noise)
    velocity = plan_of(model).velocity(interpolate(clean, noise, sigma), sigma)
    torch.testing.assert_close(velocity, noise - clean, rtol=1e-4, atol=1e-4)
