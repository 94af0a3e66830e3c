"""Training of the pocket image decoder: flow matching on pixels, given their features."""

import dataclasses
from typing import Final

import torch
from torch import nn

from blip3o.core.bounds import NotNegative, Share
from blip3o.core.config import component
from blip3o.core.errors import UsageError
from blip3o.core.rng import sample_normal, sample_uniform
from blip3o.core.types import Batch, LossOutput
from blip3o.flow.path import interpolate
from blip3o.flow.sigmas import SigmaDistribution
from blip3o.models.protocols import CleanPredictor
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.objectives import RegionLabels
from blip3o.objectives.generation import clean_features, decoder_pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelDecodingConfig:
    """Training of the image decoder.

    Args:
        tasks: tasks of the batches to which the loss applies.
        weight: factor of this loss in the sum of all losses.
        sigmas: distribution of the noise levels, a config from `SIGMA_DISTRIBUTIONS`.
        feature_noise: largest standard deviation of the noise added to the normalized features.
            Each sample draws its own, uniformly from 0. The noise makes the decoder robust to small
            errors of generated features, as noise on the condition does in cascaded diffusion.
        min_sigma: squared errors of the clean image are weighted by 1 / max(sigma, min_sigma)^2.
    """

    kind: str = "pixel_decoding"
    tasks: tuple[str, ...] = ("reconstruct",)
    weight: NotNegative = 1.0
    sigmas: SigmaDistribution = component("blip3o.flow.sigmas:SIGMA_DISTRIBUTIONS")
    feature_noise: NotNegative = 0.0
    min_sigma: Share = 0.3

    def build(self, model_config: UnifiedModelConfig) -> "PixelDecoding":
        """Returns the objective for a model.

        Raises:
            UsageError: if the model's image decoder does not predict clean images.
        """
        decoder = model_config.image_decoder
        if not decoder.predicts_clean:
            raise UsageError(
                f"pixel_decoding trains decoders that predict clean images, as 'pocket' does, "
                f"not {decoder.kind!r}"
            )
        return PixelDecoding(self, model_config)


class PixelDecoding(nn.Module):
    """Weighted squared error of the clean image that the decoder predicts.

    Args:
        config: distribution of noise levels, feature noise, weights.
        model_config: config of the model to train; defines the sizes.
    """

    needs_pixels: Final = True
    regions: Final[RegionLabels | None] = None
    samples: Final = "reconstructions"

    def __init__(self, config: PixelDecodingConfig, model_config: UnifiedModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tasks = config.tasks
        self.weight = config.weight
        self.image_px = model_config.image_decoder.image_px
        self.feature_shape = model_config.feature_shape

    def count(self, batch: Batch) -> float:
        """Returns the number of pixel values."""
        return float(len(batch) * 3 * self.image_px**2)

    def forward(self, model: UnifiedModel, batch: Batch, seed: int) -> LossOutput:
        """Returns the summed weighted error; the metrics hold the unweighted one.

        Raises:
            ValueError: if the batch has no target pixels.
        """
        clean, keys = decoder_pixels(batch), (batch.epochs, batch.indices)
        with torch.no_grad():
            features = clean_features(model, batch).float()
            level = sample_uniform(seed, "feature_noise_level", *keys).to(features)
            level = level * self.config.feature_noise
            extra = sample_normal(self.feature_shape, seed, "feature_noise", *keys).to(features)
            features = features + level[:, None, None] * extra
        noise = sample_normal(clean.shape[1:], seed, "pixel_noise", *keys).to(clean)
        uniform = sample_uniform(seed, "pixel_sigma", *keys)
        sigma = self.config.sigmas.sample(uniform).to(clean)
        noisy = interpolate(clean, noise, sigma)
        decoder = model.image_decoder
        assert isinstance(decoder, CleanPredictor), "the config predicts clean images"
        predicted = decoder.predict_clean(noisy, sigma, features)
        error = (predicted.float() - clean).square().flatten(1).sum(1)
        loss_sum = (error / sigma.clamp_min(self.config.min_sigma).square()).sum()
        count = self.count(batch)
        metrics = {"pixel_mse": (error.detach().sum(), count)}
        return LossOutput(loss_sum=loss_sum, count=count, metrics=metrics)
