"""DDPM's cosine schedule, DDIM, guidance and both losses against recordings (`transfusion`)."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from blip3o.core.types import IGNORE_LABEL, Batch
from blip3o.flow.guidance import combine
from blip3o.flow.path import (
    interpolate,
    noise_to_velocity,
    to_ddpm,
    velocity_target,
    velocity_to_clean,
)
from blip3o.flow.sigmas import NUM_TIMESTEPS, CosineSigmas, UniformSigmas, cosine_sigmas
from blip3o.flow.solver import euler
from blip3o.generate.draw import noise_levels
from blip3o.models.backbones.qwen3 import Qwen3BackboneConfig
from blip3o.models.generators.plan import Joints, Plan
from blip3o.models.generators.regression import RegressionConfig, RegressionPlan
from blip3o.models.unified import SamplingConfig, UnifiedModel, UnifiedModelConfig
from blip3o.objectives.feature_regression import FeatureRegression, FeatureRegressionConfig
from blip3o.objectives.flow_matching import FlowMatching, FlowMatchingConfig
from blip3o.objectives.next_token import NextToken, NextTokenConfig

schedules = pytest.mark.parity_cases("transfusion/ddpm*.safetensors")
forwards = pytest.mark.parity_cases("transfusion/losses*.safetensors")


def levels_at(timesteps: Tensor) -> Tensor:
    return cosine_sigmas((timesteps.double() + 1) / NUM_TIMESTEPS)


def facts_of(case: Any) -> dict[str, Any]:
    return case.neighbor(f"{case.path.stem}.json").settings()


def near(got: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(got.to(expected), expected, rtol=0, atol=relative * scale)


@schedules
def test_the_schedule_and_its_distribution(case: Any) -> None:
    alphas = case.tensors()["alphas_cumprod"].double()
    sigmas = levels_at(torch.arange(len(alphas)))
    clean_share = (1 - sigmas).square() / ((1 - sigmas).square() + sigmas.square())
    torch.testing.assert_close(clean_share, alphas, rtol=2e-5, atol=0)
    # Each step is drawn equally often.
    uniform = (torch.arange(len(alphas)).double() + 0.5) / len(alphas)
    torch.testing.assert_close(CosineSigmas().sample(uniform), sigmas.flip(0))


@schedules
def test_samples_of_ddpm_lie_on_the_path(case: Any) -> None:
    recorded = case.tensors()
    clean, noise = recorded["clean"], recorded["noise"]
    sigma = levels_at(recorded["timesteps"]).float()
    noisy = interpolate(clean, noise, sigma)
    near(to_ddpm(noisy, sigma), recorded["noisy"])
    velocity = velocity_target(clean, noise)
    near(velocity_to_clean(velocity, noisy, sigma), clean)
    near(noise_to_velocity(noise, noisy, sigma), velocity, 1e-3)  # rounding / (1 - sigma)
    # DDPM's v = sqrt(a) noise - sqrt(1 - a) clean.
    v = to_ddpm((1 - sigma)[:, None, None] * noise - sigma[:, None, None] * clean, sigma)
    near(v, recorded["v_targets"])


@schedules
def test_ddim_is_euler(case: Any) -> None:
    recorded = case.tensors()
    names = [n.removesuffix(".timesteps") for n in recorded if n.endswith("g.timesteps")]
    assert names
    for name in names:
        _, kind, spacing = name.split(".")
        timesteps = recorded[f"{name}.timesteps"].double()
        sigmas = torch.cat([levels_at(timesteps), timesteps.new_zeros(1)])
        if spacing == "trailing":
            sampling = SamplingConfig(num_inference_steps=len(timesteps), schedule="cosine")
            torch.testing.assert_close(noise_levels(sampling), sigmas.float(), rtol=1e-6, atol=0)

        def velocity(
            noisy: Tensor,
            step: int,
            *,
            kind: str = kind,
            timesteps: Tensor = timesteps,
            sigmas: Tensor = sigmas,
        ) -> Tensor:
            sigma, t = sigmas[step].expand(len(noisy)), timesteps[step]
            scaled = to_ddpm(noisy, sigma)
            if kind == "epsilon":
                return noise_to_velocity(0.8 * scaled - 0.3 * torch.cos(t / 100), noisy, sigma)
            # noise = sqrt(a) v + sqrt(1 - a) x
            v = 0.5 * scaled + 0.2 * torch.sin(t / 70)
            mixed = (1 - sigmas[step]) * v + sigmas[step] * scaled
            return noise_to_velocity(to_ddpm(mixed, sigma), noisy, sigma)

        one = sigmas[:1].expand(len(recorded[f"{name}.start"]))
        scale = to_ddpm(torch.ones(len(one), 1, 1, dtype=torch.float64), one)
        end = euler(velocity, recorded[f"{name}.start"] / scale, sigmas)
        near(end, recorded[f"{name}.end"], 1e-4)


@schedules
def test_guidance(case: Any) -> None:
    recorded, scale = case.tensors(), facts_of(case)["guidance_scale"]
    both = torch.cat([recorded["guidance.empty"], recorded["guidance.conditional"]])
    near(combine(both, scale), recorded["guidance.combined"])


def model_of(plan: Plan | None = None, logits: Tensor | None = None) -> UnifiedModel:
    """Returns the parts of a model that a loss asks, with known answers."""
    model = SimpleNamespace(
        normalizer=lambda features: features,
        prompt_images=lambda *images: None,
        plan=lambda prompts, **options: plan,
        generator=SimpleNamespace(loss_weight=torch.ones_like),
        text_states=lambda *inputs: logits,
        backbone=SimpleNamespace(
            logits=lambda states: states, config=SimpleNamespace(vocab_size=1)
        ),
    )
    return cast(UnifiedModel, model)


def batch_of(rows: int, features: Tensor | None = None, labels: Tensor | None = None) -> Batch:
    blank = torch.zeros(rows, dtype=torch.int64)
    ids = torch.zeros(rows, 1, dtype=torch.int64) if labels is None else labels
    return Batch(
        task="text",
        indices=blank,
        epochs=blank,
        input_ids=ids,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        labels=labels,
        target_features=features,
    )


def config_of(features: Tensor) -> UnifiedModelConfig:
    return cast(UnifiedModelConfig, SimpleNamespace(feature_shape=tuple(features.shape[1:])))


@schedules
def test_regression(case: Any) -> None:
    recorded = case.tensors()
    features, states = recorded["regression.features"], recorded["regression.states"]
    sizes = {**vars(Qwen3BackboneConfig.tiny()), "hidden_size": states.shape[-1]}
    joints = Joints(
        backbone=Qwen3BackboneConfig(**sizes),
        feature_channels=features.shape[-1],
        grid=round(features.shape[1] ** 0.5),
    )
    generator = RegressionConfig().build(joints)
    generator.out.weight = nn.Parameter(recorded["regression.weight"])
    generator.out.bias = nn.Parameter(recorded["regression.bias"])
    predicted = generator.features(states)
    near(predicted, recorded["regression.predicted"])
    objective = FeatureRegression(FeatureRegressionConfig(), config_of(features))
    batch = batch_of(len(features), features)
    loss = objective(model_of(RegressionPlan(predicted)), batch, 0)
    near(loss.loss_sum / loss.count, recorded["regression.loss_mean"][0])


class Flows(RegressionPlan):
    """Answers with a recorded flow, and keeps what it was asked."""

    def velocity(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        self.asked = noisy, sigma
        return -self.features  # that library's flow points from noise to data


@forwards
def test_the_flow_loss_of_recorded_predictions(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, facts = case.tensors(), facts_of(case)
    names = sorted(n.removesuffix(".clean") for n in recorded if n.endswith(".clean"))
    clean, noise, flow = (
        torch.stack([recorded[f"{name}.{kind}"].flatten(0, 1) for name in names])
        for kind in ("clean", "noise", "predicted_flow")
    )
    sigma = torch.linspace(0.1, 0.9, len(names))
    plan = Flows(flow)
    objective = FlowMatching(
        FlowMatchingConfig(sigmas=UniformSigmas(), condition_dropout=0.0), config_of(clean)
    )
    monkeypatch.setattr(objective, "_draw", lambda *arguments: (noise, sigma))
    monkeypatch.setattr(plan, "dropped", lambda is_dropped: plan)
    loss = objective(model_of(plan), batch_of(len(clean), clean), 0)
    near(loss.loss_sum / loss.count, torch.tensor(facts["flow_by_formula"]))
    noisy, told = plan.asked
    t = (1 - told)[:, None, None]  # that library's time: 1 is data
    near(noisy, t * clean + (1 - t) * noise)


@forwards
def test_the_text_loss_of_recorded_logits(case: Any) -> None:
    recorded, facts = case.tensors(), facts_of(case)
    labels = recorded["labels"].masked_fill(recorded["labels"] < 0, IGNORE_LABEL)
    # The label at a position is the token after it; a batch has labels at the tokens themselves.
    labels = nn.functional.pad(labels, (1, 0), value=IGNORE_LABEL)
    logits = nn.functional.pad(recorded["logits"], (0, 0, 0, 1))
    batch = batch_of(len(labels), labels=labels)
    loss = NextToken(NextTokenConfig())(model_of(logits=logits), batch, 0)
    assert loss.count == facts["num_text_labels"]
    near(loss.loss_sum / loss.count, torch.tensor(facts["text_by_formula"]))
