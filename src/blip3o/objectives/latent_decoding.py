"""Training of a latent diffusion decoder: images in VAE latents, given their features."""

import dataclasses
import math
from typing import Final

import torch
from torch import nn

from blip3o.core.bounds import NotNegative, Share
from blip3o.core.config import component
from blip3o.core.errors import UsageError
from blip3o.core.rng import sample_normal, sample_uniform
from blip3o.core.types import Batch, LossOutput
from blip3o.flow.sigmas import SigmaDistribution
from blip3o.models.protocols import LatentPredictor
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.objectives import RegionLabels
from blip3o.objectives.generation import clean_features, decoder_pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentDecodingConfig:
    """Training of a latent diffusion decoder.

    Args:
        tasks: tasks of the batches to which the loss applies.
        weight: factor of this loss in the sum of all losses.
        sigmas: distribution of the noise levels, a config from `SIGMA_DISTRIBUTIONS`.
        condition_dropout: share of samples whose features are those of a black image (published:
            0.1).
    """

    kind: str = "latent_decoding"
    tasks: tuple[str, ...] = ("reconstruct",)
    weight: NotNegative = 1.0
    sigmas: SigmaDistribution = component("blip3o.flow.sigmas:SIGMA_DISTRIBUTIONS")
    condition_dropout: Share = 0.1

    def build(self, model_config: UnifiedModelConfig) -> "LatentDecoding":
        """Returns the objective for a model.

        Raises:
            UsageError: if the model's image decoder is no latent diffusion.
        """
        decoder = model_config.image_decoder
        if not decoder.predicts_latents:
            raise UsageError(
                f"latent_decoding trains decoders that predict latents, as 'sana' and 'sdxl' do, "
                f"not {decoder.kind!r}"
            )
        return LatentDecoding(self, model_config)


class LatentDecoding(nn.Module):
    """Squared error of the noise or velocity that the decoder's network predicts.

    The target is the frozen VAE's latents of the image; the VAE is that of the decoder. The decoder
    decides the path from latents to noise: the straight one for SANA, that of DDPM for SDXL.

    Args:
        config: distribution of noise levels, dropout.
        model_config: config of the model to train; defines the sizes.

    Reference:
        The published training of the SANA decoder takes the mean over all elements at 1000 equally
        likely noise levels. It replaces a tenth of the source images by a black image.
    """

    needs_pixels: Final = True
    regions: Final[RegionLabels | None] = None
    samples: Final = "reconstructions"

    def __init__(self, config: LatentDecodingConfig, model_config: UnifiedModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tasks = config.tasks
        self.weight = config.weight
        self.shape = model_config.image_decoder.noise_shape

    def count(self, batch: Batch) -> float:
        """Returns the number of latent values."""
        return float(len(batch) * math.prod(self.shape))

    @torch.no_grad()
    def prepare(self, model: UnifiedModel) -> None:
        """Stores the features of a black image as the decoder's empty condition.

        Dropout trains the network on them, so guidance must lead away from the same.
        """
        side = model.config.image_encoder.image_px
        empty = _decoder_of(model).empty_features
        black = empty.new_full((1, 3, side, side), -1.0)
        model.image_encoder.eval()  # as in training, because it is frozen
        empty.copy_(model.normalizer(model.encode_images(black).float())[0])

    def forward(self, model: UnifiedModel, batch: Batch, seed: int) -> LossOutput:
        """Returns the summed squared error of a batch with a target image in each row.

        Raises:
            ValueError: if the batch has no target pixels.
        """
        pixels, keys = decoder_pixels(batch), (batch.epochs, batch.indices)
        decoder = _decoder_of(model)
        with torch.no_grad():
            features = clean_features(model, batch).float()
            latents = decoder.encode_latents(pixels)
        is_dropped = (
            sample_uniform(seed, "condition_dropout", *keys) < self.config.condition_dropout
        )
        is_dropped = is_dropped.to(features.device)[:, None, None]
        features = torch.where(is_dropped, decoder.empty_features.to(features), features)
        noise = sample_normal(self.shape, seed, "latent_noise", *keys).to(latents)
        uniform = sample_uniform(seed, "latent_sigma", *keys)
        sigma = self.config.sigmas.sample(uniform).to(latents)
        noisy, timestep, target = decoder.add_noise(latents, noise, sigma)
        error = decoder.predict(noisy, timestep, features).float() - target
        return LossOutput(loss_sum=error.square().sum(), count=self.count(batch))


def _decoder_of(model: UnifiedModel) -> LatentPredictor:
    decoder = model.image_decoder
    assert isinstance(decoder, LatentPredictor), "the config predicts latents"
    return decoder
