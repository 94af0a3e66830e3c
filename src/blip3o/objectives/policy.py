"""Reward tuning: what its objectives share. A policy draws images, and a reward judges them.

A step of reward tuning has three parts, each with its own weights in the model:

    old policy      roll_out     draws G images for each prompt and asks the reward
    start weights   add_start    gives the velocities that the regularizer keeps the model near
    model           forward      compares its velocities with both, and learns

The trainer takes the averaged weights of the run (`train.ema_decay`) as the old policy. All noise
is keyed by seed, epoch, sample and image, and every prompt is drawn in a pass of its own. So the
images of a prompt depend neither on the other prompts of a batch nor on the number of processes.
Without a trainer, the model itself takes all three parts. Axes: B rows, G images of a prompt, D
points of an image, N tokens, K channels.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from blip3o.core.bounds import Count, Guidance, NotNegative, Positive
from blip3o.core.config import Dataclass, component
from blip3o.core.errors import UsageError
from blip3o.core.rng import sample_normal, sample_uniform
from blip3o.core.types import Batch, ImageRequest, LossOutput, Rollouts
from blip3o.flow.guidance import combine
from blip3o.flow.sigmas import inference_sigmas
from blip3o.flow.solver import VelocityFunction
from blip3o.imaging.pixels import to_image
from blip3o.models.generators.plan import Plan, join_plans
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.objectives import RegionLabels
from blip3o.objectives.generation import prompts_of


class Reward(Protocol):
    """Judges images. It is a pure function of image and request, so a resumed run is exact."""

    def score(
        self, images: Sequence[Image.Image], requests: Sequence[ImageRequest]
    ) -> Sequence[float]:
        """Returns a finite score of each image; higher is better.

        Raises:
            UsageError: if there is no judgement of an image.
        """
        ...


class RewardConfig(Dataclass, Protocol):
    """Config of a reward, an entry of the table of rewards."""

    @property
    def kind(self) -> str:
        """Name in the table."""

    def build(self) -> Reward:
        """Returns the reward."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Settings that all objectives of reward tuning share.

    Args:
        reward: judges the images, a config from the table `REWARDS` of `blip3o.eval.tuning`.
        tasks: tasks of the batches to which the loss applies.
        weight: factor of this loss in the sum of all losses.
        num_images: images of each prompt (G, at least 2). Rewards are compared among them.
        num_inference_steps: steps of the sampler in training; None for the model's own number.
        guidance_scale: guidance of the policy, in drawing and in the loss; None for the model's
            own. 1 halves the work.
        least_std: rewards are divided by their standard deviation among the images of a prompt, or
            by this number if it is larger, so that tiny differences stay small.
        kl_weight: factor of the distance to the start weights, which keeps other skills; 0
            switches it off.
    """

    reward: RewardConfig = component("blip3o.eval.tuning:REWARDS")
    tasks: tuple[str, ...] = ("rollout",)
    weight: NotNegative = 1.0
    num_images: Count = 8
    num_inference_steps: Count | None = None
    guidance_scale: Guidance | None = None
    least_std: Positive = 0.05
    kl_weight: NotNegative

    def __post_init__(self) -> None:
        if self.num_images < 2:
            raise ValueError("num_images must be at least 2: rewards are compared among images")


class Points(NamedTuple):
    """Images that a policy drew for one prompt, and points on their paths; see `Rollouts`.

    Args:
        clean: the drawn features, [G, N, K].
        noisy: [G, D, N, K].
        sigma: [G, D].
        next_sigma: [G, D].
        target: [G, D, N, K].
    """

    clean: Tensor
    noisy: Tensor
    sigma: Tensor
    next_sigma: Tensor
    target: Tensor


class Keys:
    """Random numbers of the images of one prompt, keyed by (seed, epoch, sample, image, purpose).

    Args:
        batch: a batch of one row.
        seed: the run's seed.
        num_images: images of the prompt (G).
    """

    def __init__(self, batch: Batch, seed: int, num_images: int) -> None:
        self._keys = (batch.epochs.cpu(), batch.indices.cpu())
        self._seed = seed
        self._images = range(num_images)

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Returns standard normal numbers on the CPU, [G, *shape]."""
        streams = [f"rollout/{image}/{purpose}" for image in self._images]
        return torch.cat([sample_normal(shape, self._seed, one, *self._keys) for one in streams])

    def uniform(self, purpose: str) -> Tensor:
        """Returns numbers in [0, 1) on the CPU, float64 [G]."""
        streams = [f"rollout/{image}/{purpose}" for image in self._images]
        return torch.cat([sample_uniform(self._seed, one, *self._keys) for one in streams])


class PolicyObjective(nn.Module, abc.ABC):
    """Base class of the objectives of reward tuning: rollouts, rewards, regularizer, metrics.

    Args:
        config: number of images, sampler, reward, regularizer.
        model_config: config of the model to train.

    Raises:
        UsageError: if the generator has no guidance and the config asks for it.
    """

    needs_pixels: Final = False
    regions: Final[RegionLabels | None] = None
    samples: Final = "images"

    def __init__(self, config: PolicyConfig, model_config: UnifiedModelConfig) -> None:
        super().__init__()
        self.tasks = config.tasks
        self.weight = config.weight
        self.needs_start = config.kl_weight > 0
        self.reward = config.reward.build()
        self.guidance_scale = model_config.guidance(config.guidance_scale)
        sampling = model_config.sampling
        self.sigmas = inference_sigmas(
            config.num_inference_steps or sampling.num_inference_steps,
            sampling.sigma_shift,
            sampling.schedule,
        )
        self._config = config
        self._num_decoder_steps = model_config.num_decoder_steps
        self._feature_shape = model_config.feature_shape
        self._decoder_shape = model_config.image_decoder.noise_shape

    @property
    @abc.abstractmethod
    def num_points(self) -> int:
        """Number of points of each image that the loss covers (D)."""

    @abc.abstractmethod
    def draw(self, velocity: VelocityFunction, noise: Tensor, keys: Keys) -> Points:
        """Returns images that follow a velocity from noise [G, N, K], and points on their paths."""

    @abc.abstractmethod
    def losses(self, velocity: Tensor, rollouts: Rollouts, advantages: Tensor) -> Tensor:
        """Returns the loss of each point, [B, G, D].

        Args:
            velocity: velocities of the model at the points, with gradient, [B, G, D, N, K].
            rollouts: the points.
            advantages: rewards relative to the other images of the prompt, [B, G].
        """

    @abc.abstractmethod
    def distances(self, velocity: Tensor, other: Tensor, rollouts: Rollouts) -> Tensor:
        """Returns the distance of two policies at each point, [B, G, D], from their velocities."""

    def count(self, batch: Batch) -> float:
        """Returns the number of points."""
        return float(len(batch) * self._config.num_images * self.num_points)

    @torch.no_grad()
    def roll_out(self, model: UnifiedModel, batch: Batch, seed: int) -> Batch:
        """Returns the batch with images that the model drew; see `DrawsImages`.

        Raises:
            ValueError: if the batch has no requests.
        """
        if batch.requests is None:
            raise ValueError(f"a {batch.task!r} batch has no requests to draw images for")
        drawn: list[Points] = []
        old: list[Tensor] = []
        images: list[Image.Image] = []
        for row in range(len(batch)):
            one = _row_of(batch, row)
            keys = Keys(one, seed, self._config.num_images)
            velocity = self._velocity(model.plan(prompts_of(model, one)))
            noise = keys.normal(self._feature_shape, "noise").to(model.device)
            points = self.draw(velocity, noise, keys)
            images += self._decode(model, points.clean, keys)
            old.append(_at_points(velocity, points.noisy, points.sigma))
            drawn.append(points)
        rollouts = Rollouts(
            rewards=self._judge(images, batch.requests).to(model.device),
            noisy=torch.stack([one.noisy for one in drawn]),
            sigma=torch.stack([one.sigma for one in drawn]),
            next_sigma=torch.stack([one.next_sigma for one in drawn]),
            target=torch.stack([one.target for one in drawn]),
            old=torch.stack(old),
        )
        return dataclasses.replace(batch, rollouts=rollouts)

    @torch.no_grad()
    def add_start(self, model: UnifiedModel, batch: Batch) -> Batch:
        """Returns the batch with the velocities of the start weights; see `DrawsImages`."""
        assert batch.rollouts is not None, "`roll_out` comes first"
        start = self._velocities(model, batch, batch.rollouts)
        return dataclasses.replace(batch, rollouts=dataclasses.replace(batch.rollouts, start=start))

    def forward(self, model: UnifiedModel, batch: Batch, seed: int) -> LossOutput:
        """Returns the summed loss of all points of a batch's images.

        A batch without rollouts gets those of the model itself.
        """
        if batch.rollouts is None:
            batch = self.roll_out(model, batch, seed)
            batch = self.add_start(model, batch) if self.needs_start else batch
        rollouts = batch.rollouts
        assert rollouts is not None
        rewards = rollouts.rewards.double()  # exact sums: equal rewards deviate by nothing
        deviations = rewards - rewards.mean(1, keepdim=True)
        std = deviations.square().mean(1, keepdim=True).sqrt()
        advantages = (deviations / std.clamp(min=self._config.least_std)).float()
        velocity = self._velocities(model, batch, rollouts)
        loss_sum = self.losses(velocity, rollouts, advantages).sum()
        metrics = {
            "reward": (rewards.sum(), float(rewards.numel())),
            "reward_std": (std.sum(), float(len(batch))),
            "no_signal": ((std == 0).float().sum(), float(len(batch))),
        }
        if rollouts.start is not None:
            distances = self.distances(velocity, rollouts.start, rollouts).sum()
            loss_sum = loss_sum + self._config.kl_weight * distances
            metrics["kl"] = (distances.detach(), self.count(batch))
        return LossOutput(loss_sum=loss_sum, count=self.count(batch), metrics=metrics)

    def _velocity(self, plan: Plan) -> VelocityFunction:
        """Returns the guided velocity of the images of a plan's prompts, fp32."""
        plan = plan.repeat(self._config.num_images)
        if self.guidance_scale == 1:
            return lambda noisy, sigma: plan.velocity(noisy, sigma).float()
        both = join_plans([plan.null(), plan])

        def guided(noisy: Tensor, sigma: Tensor) -> Tensor:
            pair = both.velocity(torch.cat([noisy, noisy]), torch.cat([sigma, sigma]))
            return combine(pair.float(), self.guidance_scale)

        return guided

    def _velocities(self, model: UnifiedModel, batch: Batch, rollouts: Rollouts) -> Tensor:
        """Returns the velocities of the model at the points of all images, [B, G, D, N, K]."""
        velocity = self._velocity(model.plan(prompts_of(model, batch)))
        flat = _at_points(velocity, rollouts.noisy.flatten(0, 1), rollouts.sigma.flatten(0, 1))
        return flat.unflatten(0, rollouts.rewards.shape)

    def _decode(self, model: UnifiedModel, clean: Tensor, keys: Keys) -> list[Image.Image]:
        pixels = model.image_decoder.decode(
            model.decoder_features(clean.to(model.dtype)),
            keys.normal(self._decoder_shape, "decoder").to(model.device, model.dtype),
            self._num_decoder_steps,
        )
        images = to_image(pixels.float())
        assert isinstance(images, list), "a batch gives a list"
        return images

    def _judge(self, images: Sequence[Image.Image], requests: Sequence[ImageRequest]) -> Tensor:
        """Returns the rewards, [B, G]."""
        repeated = [one for one in requests for _ in range(self._config.num_images)]
        rewards = torch.tensor(self.reward.score(images, repeated), dtype=torch.float32)
        if len(rewards) != len(images) or not bool(rewards.isfinite().all()):
            raise UsageError("the reward gave no finite number for each image")
        return rewards.view(len(requests), -1)


def _row_of(batch: Batch, row: int) -> Batch:
    """Returns one row as a batch, without padding: its results do not depend on the other rows."""
    here, mask = slice(row, row + 1), batch.attention_mask[row]
    return Batch(
        task=batch.task,
        indices=batch.indices[here],
        epochs=batch.epochs[here],
        input_ids=batch.input_ids[here, mask],
        attention_mask=batch.attention_mask[here, mask],
    )


def _at_points(velocity: VelocityFunction, noisy: Tensor, sigma: Tensor) -> Tensor:
    """Returns velocities [B, D, N, K] at points [B, D, N, K] of levels [B, D], point by point."""
    pairs = zip(noisy.unbind(1), sigma.unbind(1), strict=True)
    return torch.stack([velocity(*pair) for pair in pairs], 1)
