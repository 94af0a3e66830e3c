"""Feature regression: its target, and that it teaches the head of CLIP + MSE."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from blip3o.core.types import Batch
from blip3o.models.generators.regression import RegressionConfig, RegressionPlan
from blip3o.models.unified import SamplingConfig, UnifiedModel, UnifiedModelConfig
from blip3o.objectives.feature_regression import FeatureRegression, FeatureRegressionConfig

MakeBatch = Callable[..., Batch]


@pytest.fixture
def regression() -> UnifiedModel:
    torch.manual_seed(0)
    tiny = UnifiedModelConfig.tiny()
    sampling = SamplingConfig(guidance_scale=1.0)
    return dataclasses.replace(tiny, generator=RegressionConfig(), sampling=sampling).build()


def objective(model: UnifiedModel) -> FeatureRegression:
    return FeatureRegressionConfig().build(model.config)


def test_the_loss_is_the_squared_error_of_the_features(
    regression: UnifiedModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch([3, 9])
    assert batch.target_features is not None
    clean = regression.normalizer(batch.target_features)
    for features, expected in ((clean, 0.0), (clean + 2.0, 4.0), (-clean, None)):
        plan = RegressionPlan(features)
        monkeypatch.setattr(regression, "plan", lambda prompts, plan=plan: plan)
        loss = objective(regression)(regression, batch, 0)
        mean = float(loss.loss_sum) / loss.count
        wanted = float((4 * clean.square()).mean()) if expected is None else expected
        assert mean == pytest.approx(wanted, abs=1e-6)


def test_the_head_learns(regression: UnifiedModel, make_batch: MakeBatch) -> None:
    regression.backbone.requires_grad_(False)
    batch, losses = make_batch([1, 2, 4]), list[float]()
    optimizer = torch.optim.AdamW(regression.generator.parameters(), lr=3e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss: Tensor = objective(regression)(regression, batch, 0).loss_sum
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
