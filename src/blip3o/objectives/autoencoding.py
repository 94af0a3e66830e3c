"""Training of a VAE on pixels alone: its encoder and its decoder learn to give images back."""

import dataclasses
from typing import Final

import torch
from torch import Tensor, nn

from blip3o.core.bounds import NotNegative
from blip3o.core.errors import UsageError
from blip3o.core.rng import sample_normal
from blip3o.core.types import Batch, LossOutput
from blip3o.models.decoders.vae import VaeDecoder, VaeDecoderConfig
from blip3o.models.encoders.vae import VaeEncoder, VaeEncoderConfig
from blip3o.models.unified import UnifiedModel, UnifiedModelConfig
from blip3o.objectives import RegionLabels


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencodingConfig:
    """Training of a `vae` image encoder together with its `vae` image decoder.

    Args:
        tasks: tasks of the batches to which the loss applies.
        weight: factor of this loss in the sum of all losses.
        kl_weight: factor of the divergence of the latents from a standard normal distribution;
            a DC autoencoder has none.
    """

    kind: str = "autoencoding"
    tasks: tuple[str, ...] = ("reconstruct",)
    weight: NotNegative = 1.0
    kl_weight: NotNegative = 1e-6

    def build(self, model_config: UnifiedModelConfig) -> "Autoencoding":
        """Returns the objective for a model.

        Raises:
            UsageError: if encoder and decoder are not the two halves of one autoencoder.
        """
        encoder, decoder = model_config.image_encoder, model_config.image_decoder
        if not (isinstance(encoder, VaeEncoderConfig) and isinstance(decoder, VaeDecoderConfig)):
            raise UsageError(
                f"autoencoding trains a 'vae' image encoder with a 'vae' image decoder, not "
                f"{encoder.kind!r} with {decoder.kind!r}"
            )
        if encoder.autoencoder != decoder.autoencoder:
            raise UsageError(
                "autoencoding needs one autoencoder: model.image_encoder.autoencoder and "
                "model.image_decoder.autoencoder differ"
            )
        return Autoencoding(self, decoder)


class Autoencoding(nn.Module):
    """Absolute error of the pixels, and a small divergence that keeps the latents bounded.

    Latents are drawn from the posterior, with noise keyed by the sample; those of a DC autoencoder
    are not random. The loss knows no names and no captions.

    Args:
        config: weights.
        decoder: config of the image decoder; defines the sizes.

    Reference:
        Latent diffusion (arXiv 2112.10752, appendix G) without its perceptual and adversarial
        losses: both terms are summed over an image, so `kl_weight` has the same meaning.
    """

    needs_pixels: Final = True
    regions: Final[RegionLabels | None] = None
    samples: Final = "reconstructions"

    def __init__(self, config: AutoencodingConfig, decoder: VaeDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.tasks = config.tasks
        self.weight = config.weight
        self.image_px = decoder.image_px
        self.latent_shape = (decoder.feature_channels, decoder.grid, decoder.grid)

    def count(self, batch: Batch) -> float:
        """Returns the number of pixel values."""
        return float(len(batch) * 3 * self.image_px**2)

    def forward(self, model: UnifiedModel, batch: Batch, seed: int) -> LossOutput:
        """Returns the summed loss; the metrics hold the squared error and the divergence.

        Raises:
            ValueError: if the batch has no target pixels.
        """
        clean = batch.target_pixels
        if clean is None:
            raise ValueError(f"a {batch.task!r} batch needs target pixels to train a VAE")
        encoder, decoder = model.image_encoder, model.image_decoder
        assert isinstance(encoder, VaeEncoder), "checked when the objective is built"
        assert isinstance(decoder, VaeDecoder), "checked when the objective is built"
        mean, log_variance = encoder.posterior(clean)
        latents, divergence = mean.float(), torch.zeros((), device=clean.device)
        if log_variance is not None:
            keys = (batch.epochs, batch.indices)
            noise = sample_normal(self.latent_shape, seed, "posterior", *keys).to(latents)
            divergence = _divergence(latents, log_variance.float())
            latents = latents + noise * (log_variance.float() / 2).exp()
        error = decoder.reconstruct(latents).float() - clean
        loss_sum = error.abs().sum() + self.config.kl_weight * divergence
        count = self.count(batch)
        metrics = {"pixel_mse": (error.detach().square().sum(), count)}
        if log_variance is not None:
            metrics["kl"] = (divergence.detach(), float(latents.numel()))
        return LossOutput(loss_sum=loss_sum, count=count, metrics=metrics)


def _divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Returns the summed KL divergence of Gaussians from standard normal ones."""
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
