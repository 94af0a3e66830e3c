"""CLIP + MSE: the head, and its features as a velocity."""

import dataclasses

import pytest
import torch

from blip3o.flow.sigmas import inference_sigmas
from blip3o.flow.solver import euler, heun
from blip3o.generate.draw import draw
from blip3o.models.generators.regression import Regression, RegressionConfig
from blip3o.models.prompts import Prompts
from blip3o.models.unified import SamplingConfig, UnifiedModel, UnifiedModelConfig


@pytest.fixture
def model() -> UnifiedModel:
    torch.manual_seed(0)
    tiny = UnifiedModelConfig.tiny()
    sampling = SamplingConfig(guidance_scale=1.0, num_inference_steps=1)
    return dataclasses.replace(tiny, generator=RegressionConfig(), sampling=sampling).build().eval()


def prompts() -> Prompts:
    ids = torch.randint(10, 300, (2, 5), generator=torch.Generator().manual_seed(0))
    return Prompts(input_ids=ids, attention_mask=torch.ones_like(ids).bool())


def test_there_is_a_query_for_each_feature_token(model: UnifiedModel) -> None:
    generator = model.generator
    assert isinstance(generator, Regression)
    assert len(generator.query_tokens.weight) == model.config.feature_shape[0] == 4
    assert model.config.max_prompt_tokens == model.config.backbone.max_positions - 4


@torch.no_grad()
def test_the_linear_head_maps_the_states_of_the_queries(model: UnifiedModel) -> None:
    generator, given = model.generator, prompts()
    assert isinstance(generator, Regression)
    states = generator.query_tokens.read(model.backbone, given)[:, 5:]
    (features,) = model.plan(given).tensors()
    expected = states @ generator.out.weight.T + generator.out.bias
    torch.testing.assert_close(features, expected)


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 3, 30])
def test_any_noise_and_any_number_of_steps_give_the_same_features(
    model: UnifiedModel, steps: int
) -> None:
    plan = model.plan(prompts())
    (features,) = plan.tensors()
    sampling = dataclasses.replace(model.config.sampling, num_inference_steps=steps)
    for seed in (0, 1):
        noise = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(draw(plan, noise, 1.0, sampling), features, rtol=0, atol=1e-5)


@torch.no_grad()
def test_both_solvers_land_on_the_features(model: UnifiedModel) -> None:
    plan, sigmas = model.plan(prompts()), inference_sigmas(5)
    (features,) = plan.tensors()
    for solver in (euler, heun):
        sampling = plan.sampling(sigmas[:-1])
        drawn = solver(sampling.velocity, torch.randn(2, 4, 8), sigmas)
        torch.testing.assert_close(drawn, features, rtol=0, atol=1e-5)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="num_heads 3 does not divide the backbone's width 16"):
        dataclasses.replace(
            UnifiedModelConfig.tiny(),
            generator=RegressionConfig(num_layers=1, num_heads=3),
            sampling=SamplingConfig(guidance_scale=1.0),
        )
