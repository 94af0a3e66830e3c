"""A VAE's decoder: latents that were generated as feature tokens, back to pixels.

The counterpart of the `vae` image encoder; nothing is drawn and nothing is iterated here.
"""

import dataclasses
from typing import Any

from torch import Tensor, nn

from blip3o.core.bounds import Count
from blip3o.core.config import component
from blip3o.models.decoders.latent_diffusion import latents_to_pixels, set_low_memory
from blip3o.models.encoders.vae import KlAutoencoderConfig, features_to_latents


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaeDecoderConfig:
    """A VAE's decoder at one image size.

    Args:
        image_px: side of the image; a multiple of the autoencoder's downsampling.
        autoencoder: which VAE, a config out of `AUTOENCODERS`.
    """

    kind: str = "vae"
    image_px: Count
    autoencoder: Any = component("blip3o.models.encoders.vae:AUTOENCODERS")

    def __post_init__(self) -> None:
        if self.image_px % self.autoencoder.downsampling:
            raise ValueError(
                f"image_px {self.image_px} must be a multiple of the autoencoder's downsampling "
                f"({self.autoencoder.downsampling})"
            )

    @property
    def grid(self) -> int:
        """Feature tokens along one side."""
        return self.image_px // self.autoencoder.downsampling

    @property
    def feature_channels(self) -> int:
        """Channels of the features (K), which are the latents'."""
        return self.autoencoder.latent_channels

    @property
    def noise_shape(self) -> tuple[int]:
        """Shape of the noise one image starts from: none."""
        return (0,)

    @classmethod
    def published(cls) -> "VaeDecoderConfig":
        """Returns FLUX.1's VAE at 512 px, which BLIP3-o's VAE variant generated for."""
        return cls(image_px=512, autoencoder=KlAutoencoderConfig.flux())

    @classmethod
    def tiny(cls) -> "VaeDecoderConfig":
        """Returns the smallest useful config, for tests."""
        autoencoder = KlAutoencoderConfig(
            latent_channels=4,
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=2,
            scaling_factor=0.5,
            shift_factor=0.1,
        )
        return cls(image_px=16, autoencoder=autoencoder)

    def build(self) -> "VaeDecoder":
        """Returns the decoder with fresh weights.

        Raises:
            UsageError: if diffusers is not installed.
        """
        return VaeDecoder(self)


class VaeDecoder(nn.Module):
    """Scaled latents as feature tokens [B, N, C], row by row, to pixels [B, 3, P, P].

    Weight names are those of the published autoencoder after `vae.`; its encoder half (`encoder.`,
    `quant_conv.`) is not here.

    Args:
        config: which VAE, and the image size.

    Reference:
        BLIP3-o section 3.2 (VAE + flow matching).
    """

    def __init__(self, config: VaeDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = config.autoencoder.build()
        self.vae.encoder = self.vae.quant_conv = None

    @property
    def layers(self) -> list[nn.Module]:
        """Repeated blocks of one shape: none, a VAE's stages differ."""
        return []

    def decode(self, features: Tensor, noise: Tensor, num_inference_steps: int) -> Tensor:
        """Returns images [B, 3, P, P] in [-1, 1] for features.

        Args:
            features: latents as the `vae` encoder gives them, [B, N, C].
            noise: not used, [B, 0].
            num_inference_steps: not used.
        """
        del noise, num_inference_steps
        latents = features_to_latents(features, self.config.autoencoder, self.config.grid)
        return latents_to_pixels(self.vae, latents)

    def set_low_memory(self, *, sliced: bool = True, tiled: bool = True) -> None:
        """Chooses how the VAE decodes; see `latent_diffusion.set_low_memory`."""
        set_low_memory(self.vae, sliced=sliced, tiled=tiled)
