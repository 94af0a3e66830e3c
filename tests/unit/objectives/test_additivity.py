"""Property of all objectives: sums and counts of batches of any size add up."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from blip3o.core.config import from_dict, to_dict
from blip3o.core.types import Batch
from blip3o.eval.tuning.scenes import ScenesRewardConfig
from blip3o.flow.sigmas import DiscreteUniformSigmas, UniformSigmas
from blip3o.models.decoders import DECODERS
from blip3o.models.unified import UnifiedModel
from blip3o.objectives import OBJECTIVES, Objective, TextObjective
from blip3o.objectives.autoencoding import AutoencodingConfig
from blip3o.objectives.diffusion_nft import DiffusionNftConfig
from blip3o.objectives.feature_regression import FeatureRegressionConfig
from blip3o.objectives.flow_grpo import FlowGrpoConfig
from blip3o.objectives.flow_matching import FlowMatchingConfig
from blip3o.objectives.image_text import ImageTextConfig
from blip3o.objectives.latent_decoding import LatentDecodingConfig
from blip3o.objectives.next_token import NextTokenConfig
from blip3o.objectives.pixel_decoding import PixelDecodingConfig
from blip3o.objectives.policy import PolicyObjective, Reward

SMALL = {"text_size": 8, "text_layers": 1, "text_heads": 2, "embedding_size": 8, "pixel_px": 4}
CONFIGS: dict[str, tuple[Any, str]] = {
    "autoencoding": (AutoencodingConfig(kl_weight=0.1), "reconstruct"),
    "diffusion_nft": (DiffusionNftConfig(reward=ScenesRewardConfig(), num_images=3), "rollout"),
    "flow_grpo": (FlowGrpoConfig(reward=ScenesRewardConfig(), num_images=3), "rollout"),
    "feature_regression": (FeatureRegressionConfig(), "text_to_image"),
    "flow_matching": (FlowMatchingConfig(sigmas=UniformSigmas(), draws=2), "text_to_image"),
    "flow_matching with text": (
        FlowMatchingConfig(sigmas=UniformSigmas(), text_weight=1.0), "text_to_image",
    ),
    "flow_matching of edits": (FlowMatchingConfig(sigmas=UniformSigmas()), "edit"),
    "next_token": (NextTokenConfig(), "text"),
    "next_token with images": (NextTokenConfig(), "image_to_text"),
    "next_token with early answers": (NextTokenConfig(early_weight=0.5), "text"),
    "pixel_decoding": (
        PixelDecodingConfig(sigmas=UniformSigmas(), feature_noise=0.5),
        "reconstruct",
    ),
    "latent_decoding sana": (LatentDecodingConfig(sigmas=UniformSigmas()), "reconstruct"),
    "latent_decoding sdxl": (
        LatentDecodingConfig(sigmas=DiscreteUniformSigmas(), condition_dropout=0.5),
        "reconstruct",
    ),
    # The contrastive and the region losses compare inside a batch and do not add up.
    "image_text": (
        ImageTextConfig(
            **SMALL, things=("a", "b"), colors=("c", "d", "e"), contrastive_weight=0.0,
            region_weight=0.0,
        ),
        "contrastive",
    ),
}  # fmt: skip
each_objective = pytest.mark.parametrize("which", CONFIGS)
MakeBatch = Callable[..., Batch]


@pytest.fixture
def model(
    which: str, make_model: Callable[[str], UnifiedModel], vae_model: UnifiedModel
) -> UnifiedModel:
    """The model that the objective trains; the last word of its name is the image decoder."""
    kind = which.split()[-1]
    if which == "autoencoding":
        return vae_model
    return make_model(kind if kind in DECODERS.names() else "pocket")


@pytest.fixture
def built(which: str, model: UnifiedModel, brightness: Reward) -> tuple[Objective, str]:
    """The objective and its task; rewards are those of any image."""
    config, task = CONFIGS[which]
    torch.manual_seed(1)
    objective = config.build(model.config)
    if isinstance(objective, PolicyObjective):
        objective.reward = brightness
    return objective, task


def test_every_objective_is_covered() -> None:
    assert {config.kind for config, _ in CONFIGS.values()} == set(OBJECTIVES.names())


@each_objective
def test_config_round_trips(which: str, model: UnifiedModel) -> None:
    config, task = CONFIGS[which]
    assert from_dict(type(config), to_dict(config)) == config
    objective = config.build(model.config)
    assert isinstance(objective, Objective)
    assert task in objective.tasks


@each_objective
def test_a_batch_of_four_equals_two_of_two(
    which: str, model: UnifiedModel, make_batch: MakeBatch, built: tuple[Objective, str]
) -> None:
    objective, task = built
    whole = objective(model, make_batch([11, 12, 13, 14], task), 0)
    halves = [objective(model, make_batch(pair, task), 0) for pair in ([11, 12], [13, 14])]
    parts = torch.stack([half.loss_sum for half in halves])
    torch.testing.assert_close(parts.sum(), whole.loss_sum, rtol=1e-4, atol=1e-5)
    assert sum(half.count for half in halves) == whole.count > 0
    if isinstance(objective, TextObjective) and whole.text_sum is not None:
        texts = [half.text_sum for half in halves if half.text_sum is not None]
        torch.testing.assert_close(torch.stack(texts).sum(), whole.text_sum, rtol=1e-4, atol=1e-5)
        assert whole.metrics["text_loss"][1] == objective.text_count(
            make_batch([11, 12, 13, 14], task)
        )
    if which != "image_text":
        for name, (total, count) in whole.metrics.items():
            sums = [half.metrics[name] for half in halves]
            expected = float(sum(value for value, _ in sums))
            assert float(total) == pytest.approx(expected, rel=1e-4), name
            assert sum(part for _, part in sums) == count, name


@each_objective
def test_count_is_known_before_the_forward_pass(
    which: str, model: UnifiedModel, make_batch: MakeBatch, built: tuple[Objective, str]
) -> None:
    objective, task = built
    batch = make_batch([1, 2, 3], task)
    assert objective(model, batch, 0).count == objective.count(batch)


@each_objective
def test_order_of_rows_does_not_matter(
    which: str, model: UnifiedModel, make_batch: MakeBatch, built: tuple[Objective, str]
) -> None:
    objective, task = built
    one = objective(model, make_batch([5, 6, 7], task), 0).loss_sum
    other = objective(model, make_batch([7, 5, 6], task), 0).loss_sum
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@each_objective
def test_randomness_is_keyed_by_seed_epoch_and_index(
    which: str, model: UnifiedModel, make_batch: MakeBatch, built: tuple[Objective, str]
) -> None:
    objective, task = built
    kinds = ("auto", "diffusion", "flow", "latent", "pixel")
    is_random = which.startswith(kinds) or which.endswith("hidden answers")

    def loss(seed: int, epoch: int) -> list[float]:
        torch.manual_seed(seed + 10 * epoch)  # the global state must have no effect
        output = objective(model, make_batch([3, 4], task, epoch), seed)
        return [
            float(output.loss_sum.detach()),
            *(float(total) for total, _ in output.metrics.values()),
        ]

    assert loss(0, 0) == loss(0, 0)
    assert (loss(0, 0) == loss(1, 0)) != is_random
    assert (loss(0, 0) == loss(0, 1)) != is_random
