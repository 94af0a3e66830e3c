"""Reward tuning: formulas, directions, rollouts that depend on their keys only, and learning."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from blip3o.core.config import from_dict, to_dict
from blip3o.core.errors import UsageError
from blip3o.core.types import Batch, ImageRequest, Rollouts
from blip3o.eval.tuning.scenes import ScenesRewardConfig
from blip3o.flow.guidance import combine
from blip3o.models.unified import UnifiedModel
from blip3o.objectives.diffusion_nft import DiffusionNftConfig
from blip3o.objectives.flow_grpo import FlowGrpoConfig
from blip3o.objectives.generation import prompts_of
from blip3o.objectives.policy import Keys, PolicyObjective, Reward

MakeBatch = Callable[..., Batch]
KINDS: dict[str, type[Any]] = {"nft": DiffusionNftConfig, "grpo": FlowGrpoConfig}
each_kind = pytest.mark.parametrize("kind", KINDS)
SHAPE = (1, 2, 1, 3, 4)
"""One prompt, two images, one point, three tokens, four channels."""


def build(kind: str, model: UnifiedModel, reward: Reward, **changes: Any) -> PolicyObjective:
    objective = KINDS[kind](reward=ScenesRewardConfig(), **changes).build(model.config)
    objective.reward = reward
    return objective


def rollouts(seed: int = 0) -> Rollouts:
    g = torch.Generator().manual_seed(seed)
    noisy, target, old, start = (torch.randn(SHAPE, generator=g) for _ in range(4))
    sigma = torch.full(SHAPE[:3], 0.6)
    return Rollouts(
        rewards=torch.tensor([[1.0, 0.0]]),
        noisy=noisy,
        sigma=sigma,
        next_sigma=sigma - 0.1,
        target=target,
        old=old,
        start=start,
    )


def velocities(seed: int = 9) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def test_the_loss_of_diffusion_nft_is_that_of_the_paper(
    model: UnifiedModel, brightness: Reward
) -> None:
    points, advantages = rollouts(), torch.tensor([[0.4, -3.0]])
    got = build("nft", model, brightness, beta=0.3).losses(velocities(), points, advantages)
    old, target, own = (t.double().numpy() for t in (points.old, points.target, velocities()))
    good = np.array([0.5 + 0.5 * 0.4, 0.0]).reshape(1, 2, 1)
    positive = (0.7 * old + 0.3 * own - target) ** 2
    negative = (1.3 * old - 0.3 * own - target) ** 2
    expected = good * positive.mean((-2, -1)) + (1 - good) * negative.mean((-2, -1))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5)


def test_the_loss_and_the_divergence_of_flow_grpo_are_those_of_the_paper(
    model: UnifiedModel, brightness: Reward
) -> None:
    points, advantages = rollouts(), torch.tensor([[0.5, -0.5]])
    assert points.start is not None
    own = points.old + 0.02 * velocities()
    objective = build("grpo", model, brightness, clip_range=0.01, noise_level=0.7)
    level, step = 0.6, 0.1
    b = 0.7 * np.sqrt(level / (1 - level))
    deviation = b * np.sqrt(step)

    def mean(velocity: Tensor) -> Tensor:
        noisy = points.noisy.double()
        velocity = velocity.double()
        drift = b**2 / (2 * level) * (noisy + (1 - level) * velocity)
        return noisy - step * (velocity + drift)

    def log_probability(velocity: Tensor) -> Tensor:
        one = torch.distributions.Normal(mean(velocity), deviation)
        return one.log_prob(points.target.double()).mean((-2, -1))

    ratio = (log_probability(own) - log_probability(points.old)).exp()
    assert bool((ratio - 1).abs().max() > 0.01), "the clip has an effect"
    gains = torch.tensor([[[0.5], [-0.5]]])
    expected = -torch.minimum(ratio * gains, ratio.clamp(0.99, 1.01) * gains)
    got = objective.losses(own, points, advantages)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-6)
    apart = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean(own), deviation),
        torch.distributions.Normal(mean(points.start), deviation),
    )
    got = objective.distances(own, points.start, points)
    torch.testing.assert_close(got.double(), apart.mean((-2, -1)), rtol=1e-4, atol=1e-6)


@each_kind
def test_good_images_attract_and_bad_ones_repel(
    kind: str, model: UnifiedModel, brightness: Reward
) -> None:
    points = rollouts()
    objective = build(kind, model, brightness)
    velocity = points.old.clone().requires_grad_()
    objective.losses(velocity, points, torch.tensor([[1.0, -1.0]])).sum().backward()
    assert velocity.grad is not None
    after = velocity.detach() - 0.1 * velocity.grad
    if kind == "nft":
        gap = [(one - points.target).square().mean((-2, -1)) for one in (points.old, after)]
    else:
        probability = functools.partial(objective.losses, rollouts=points)
        gap = [probability(one, advantages=torch.ones(1, 2)) for one in (points.old, after)]
    good, bad = (gap[1] - gap[0]).flatten().tolist()
    assert good < 0 < bad


def test_the_noise_of_the_sampler_keeps_the_distribution_of_the_images(
    model: UnifiedModel, brightness: Reward
) -> None:
    objective = build("grpo", model, brightness, num_inference_steps=200)
    spread = 0.5

    def velocity(noisy: Tensor, sigma: Tensor) -> Tensor:  # exact for normal images
        s = sigma[:, None, None]
        variance = ((1 - s) * spread).square() + s.square()
        return (s - (1 - s) * spread**2) / variance * noisy

    keys = Keys(one_row(), 0, 2)
    points = objective.draw(velocity, keys.normal((100, 100), "noise"), keys)
    assert float(points.clean.std()) == pytest.approx(spread, rel=0.02)
    plain = build("nft", model, brightness, num_inference_steps=200)
    same = plain.draw(velocity, keys.normal((100, 100), "noise"), keys)
    assert float(same.clean.std()) == pytest.approx(spread, rel=0.02)


def one_row() -> Batch:
    return Batch(
        task="rollout",
        indices=torch.tensor([0]),
        epochs=torch.tensor([0]),
        input_ids=torch.zeros(1, 1, dtype=torch.int64),
        attention_mask=torch.ones(1, 1, dtype=torch.bool),
    )


@each_kind
def test_the_images_of_a_prompt_do_not_depend_on_the_rest_of_the_batch(
    kind: str, model: UnifiedModel, brightness: Reward, make_batch: MakeBatch
) -> None:
    objective = build(kind, model, brightness, num_images=2)
    together = objective.roll_out(model, make_batch([3, 4, 5], "rollout"), 0).rollouts
    alone = objective.roll_out(model, make_batch([4], "rollout"), 0).rollouts
    assert together is not None
    assert alone is not None
    for field in ("rewards", "noisy", "sigma", "next_sigma", "target", "old"):
        assert torch.equal(getattr(together, field)[1:2], getattr(alone, field)), field
    other = objective.roll_out(model, make_batch([4], "rollout"), 1).rollouts
    assert other is not None
    assert not torch.equal(other.rewards, alone.rewards)


def test_a_policy_is_guided_as_the_sampler_is(
    model: UnifiedModel, brightness: Reward, make_batch: MakeBatch
) -> None:
    batch = make_batch([4], "rollout")
    points = build("nft", model, brightness, guidance_scale=2.5).roll_out(model, batch, 0).rollouts
    assert points is not None
    row = dataclasses.replace(batch, input_ids=batch.input_ids[batch.attention_mask][None])
    row = dataclasses.replace(row, attention_mask=torch.ones_like(row.input_ids).bool())
    plan = model.plan(prompts_of(model, row)).repeat(8)
    noisy, sigma = points.noisy[0, :, 1], points.sigma[0, :, 1]
    pair = torch.cat([plan.null().velocity(noisy, sigma), plan.velocity(noisy, sigma)])
    torch.testing.assert_close(points.old[0, :, 1], combine(pair, 2.5), rtol=1e-4, atol=1e-4)


@each_kind
def test_the_model_learns_to_draw_what_is_rewarded(
    kind: str, model: UnifiedModel, brightness: Reward, make_batch: MakeBatch
) -> None:
    changes = {"trained_steps": 4, "clip_range": 0.2} if kind == "grpo" else {"draws": 4}
    objective = build(
        kind, model, brightness, num_images=8, num_inference_steps=6, guidance_scale=1.0,
        kl_weight=0.0, **changes,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.generator.parameters(), lr=3e-3)
    batch = make_batch([3, 4], "rollout")
    rewards: list[float] = []
    for step in range(20):
        output = objective(model, batch, step)
        total, count = output.metrics["reward"]
        rewards.append(float(total) / count)
        optimizer.zero_grad()
        (output.loss_sum / output.count).backward()
        optimizer.step()
    first, last = np.mean(rewards[:3]), np.mean(rewards[-3:])
    spread = float(output.metrics["reward_std"][0]) / 2
    assert last - first > 0.5 * spread > 0, rewards


class _Broken:
    def __init__(self, value: float) -> None:
        self.value = value

    def score(self, images: Sequence[Image.Image], requests: Sequence[ImageRequest]) -> list[float]:
        del requests
        return [self.value] * len(images)


def test_images_that_are_all_equally_good_teach_nothing_but_are_counted(
    model: UnifiedModel, make_batch: MakeBatch
) -> None:
    objective = build("grpo", model, _Broken(0.7))
    output = objective(model, make_batch([3, 4], "rollout"), 0)
    assert float(output.loss_sum.detach()) == pytest.approx(0, abs=1e-6)
    assert output.metrics["no_signal"] == (2, 2)
    assert float(output.metrics["kl"][0]) == pytest.approx(0, abs=1e-6)
    assert float(output.metrics["reward"][0]) == pytest.approx(0.7 * 16)


def test_bad_rewards_and_settings_are_refused(
    model: UnifiedModel, make_batch: MakeBatch, brightness: Reward
) -> None:
    with pytest.raises(UsageError, match="no finite number"):
        build("nft", model, _Broken(float("nan")))(model, make_batch([3], "rollout"), 0)
    with pytest.raises(ValueError, match="num_images must be at least 2"):
        build("nft", model, brightness, num_images=1)
    with pytest.raises(ValueError, match="trained_steps must be at most 3"):
        build("grpo", model, brightness, num_inference_steps=4, trained_steps=4)
    data = to_dict(DiffusionNftConfig(reward=ScenesRewardConfig()))
    with pytest.raises(UsageError, match="unknown reward 'scene'; did you mean scenes"):
        from_dict(DiffusionNftConfig, {**data, "reward": {"kind": "scene"}})
