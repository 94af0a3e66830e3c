"""A VAE's encoder whose latents are the features, for flow matching on VAE latents.

The layers are those of `autoencoders`, without the decoder half.

Reference:
    BLIP3-o section 3.2 (VAE + flow matching); parity families `sdxl_decoder` and `siglip2_sana`.
"""

import dataclasses

from torch import Tensor, nn

from blip3o.models.autoencoders import SizedAutoencoder, latents_to_features, posterior
from blip3o.models.encoders.grid import check_pixels
from blip3o.models.protocols import ImageEncoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaeEncoderConfig(SizedAutoencoder):
    """A VAE's encoder at one image size; see `SizedAutoencoder` for the fields."""

    @property
    def num_tokens(self) -> int:
        """Feature tokens of an image (N)."""
        return self.grid**2

    @property
    def num_channels(self) -> int:
        """Channels of a feature token (C)."""
        return self.autoencoder.latent_channels

    def build(self) -> "VaeEncoder":
        """Returns the encoder with fresh weights; raises UsageError without diffusers."""
        return VaeEncoder(self)


class VaeEncoder(ImageEncoder):
    """Pixels [B, 3, P, P] in [-1, 1] to features [B, N, C], latent pixels row by row.

    The latents are the mode of the posterior, so encoding is deterministic. Weight names are those
    of the published autoencoder without its decoder half (`decoder.`, `post_quant_conv.`).

    Args:
        config: the VAE and the image size.
    """

    def __init__(self, config: VaeEncoderConfig) -> None:
        super().__init__()
        self.config = config
        autoencoder = config.autoencoder.build()
        self.encoder: nn.Module = autoencoder.encoder
        self.quant_conv: nn.Module | None = dict(autoencoder.named_children()).get("quant_conv")

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the features of images; see `ImageEncoder.forward`."""
        # The mode of a Gaussian is its mean.
        return latents_to_features(self.posterior(pixels)[0], self.config.autoencoder)

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns means and log variances of the latents of images, [B, C, G, G] each.

        They are on the scale of the autoencoder, without shift and scaling factors. A DC
        autoencoder has no variances; None stands in their place.

        Args:
            pixels: [B, 3, P, P] in [-1, 1].

        Raises:
            ValueError: if the images do not have the config's size.
        """
        check_pixels(pixels, self.config.image_px)
        return posterior(self, pixels, self.config.num_channels)
